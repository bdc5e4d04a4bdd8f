"""Standby workers: idle processes with everything imported, which Ray gives to the next start of the training workers.

A new training worker spends most of its start on imports: Ray, PyTorch, DeepSpeed and this project. Soon after its
first step, each worker therefore asks its node for one more process with its own runtime environment. Ray starts it,
its hook imports, and it waits. When Ray Train replaces the workers, Ray finds processes that fit, and starts none.

A standby belongs to no job: a driver that was killed and is submitted again to the same cluster finds it, too. It holds
half a gigabyte of memory. The request goes to Ray's node manager, for which Python has no public function; if it is
refused, the run continues without.
"""

import importlib
import logging
import time
from contextlib import suppress
from typing import Any

import grpc
import ray
from ray.train import Checkpoint, UserCallback

from blip3o.device import DeviceKind, accelerator_name
from blip3o.train.callbacks import Callback, StepRecord

logger = logging.getLogger(__name__)

AFTER_S = 15.0  # a shorter run does not pay for processes that it never needs
KEEP_SECONDS = 24 * 3600  # idle; later, Ray ends it as any other process that nothing uses
TIMEOUT_S = 5.0
PROCESSES = 4  # of a start, besides workers and decoding actors
# The modules of a training worker, and those that PyTorch and DeepSpeed import at their first use: torch's compiler,
# which they ask about functions that are never compiled here, takes longer than all others.
PRELOADED = (
    "ray.train.torch",
    "ray.data",
    "deepspeed",
    "deepspeed.ops",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "jobs.training.worker",
)
HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"  # Ray calls the function that it names before a process gets work


def worker_runtime_env(device: DeviceKind) -> dict[str, Any]:
    """The runtime environment of training workers on a `device`: their processes import everything at their start."""
    return {"env_vars": {HOOK: f"{__name__}.preload", "DS_ACCELERATOR": accelerator_name(device)}}


def preload() -> None:
    """Imports what a training worker needs. Runs in each process that is started for one, before it gets work."""
    for name in PRELOADED:
        with suppress(ImportError):  # raised again, with more to it, where the module is used
            importlib.import_module(name)


class _Due:
    """Whether to ask for standbys: once, `AFTER_S` after the first question."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._asked = False

    def __call__(self) -> bool:
        now = time.monotonic()
        self._first = self._first or now
        if self._asked or now - self._first < AFTER_S:
            return False
        self._asked = True
        return True


class StandbyKeeper(Callback):
    """Asks for a standby of this worker, `AFTER_S` after its first step."""

    def __init__(self) -> None:
        self._due = _Due()

    def after_step(self, done: int, record: StepRecord) -> None:
        """Does not wait for the process to start."""
        if self._due():
            start_standby()


class StreamStandbyKeeper(UserCallback):
    """Asks for standbys of the other processes of a start. Runs in Ray Train's controller.

    They are Ray Train's synchronization actor and its preemption watcher, and for the stream its manager, its
    coordinator and the actors that decode. Those on other nodes than the driver's get none.
    """

    def __init__(self, data_actors: int) -> None:
        self._count = PROCESSES + data_actors
        self._due = _Due()

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:  # noqa: ANN401 - as Ray calls it
        """Ray Train calls it after a checkpoint."""
        if self._due():
            start_standby(self._count)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ANN401 - as Ray calls it
        """The next start uses them up."""
        self._due = _Due()


def start_standby(count: int = 1) -> bool:
    """Has this node start `count` processes with this worker's runtime environment; returns whether it agreed."""
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.common_pb2 import Language
    from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest
    from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

    context = ray.get_runtime_context()
    node = next(it for it in ray.nodes() if it["NodeID"] == context.get_node_id())
    request = PrestartWorkersRequest(language=Language.PYTHON, num_workers=count, keep_alive_duration_secs=KEEP_SECONDS)
    request.runtime_env_info.serialized_runtime_env = context.get_runtime_env_string()
    with init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        try:
            NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            logger.warning("no standby worker: %s", error)
            return False
    return True
