"""The Ray Train trainer of a fit: its workers, its data stream, and its validation tasks."""

from dataclasses import asdict
from typing import Any

import psutil
import ray.train
from ray.train import ValidationConfig, ValidationTaskConfig
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer

from blip3o import settings, storage
from blip3o.data.stream import data_config
from blip3o.device import collective_backend, gpus_per_worker
from jobs.training.callbacks import CheckpointPruner
from jobs.training.plan import FitPlan
from jobs.training.resources import scaling_config
from jobs.training.standby import StreamStandbyKeeper, worker_runtime_env
from jobs.training.stream import datasets, stream_encoders
from jobs.training.validate import validate_checkpoint
from jobs.training.worker import train_worker

HANG_MARGIN_S = 60  # from a watchdog's report to the end of a collective that still waits


class NodeInterfaces(TorchConfig):
    """A process group whose ranks meet at the addresses by which Ray knows their nodes.

    gloo takes the interface that the host's name resolves to. Where that is 127.0.0.1, as in many images, ranks on
    different hosts would wait for each other in vain. NCCL looks at the interfaces themselves.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        """Ray's backend, after each worker has chosen its interface."""
        ray_backend: type[Backend] = super().backend_cls

        class Chosen(ray_backend):
            def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:  # noqa: ANN401 - Ray's own
                worker_group.execute(choose_interface)
                super().on_start(worker_group, backend_config)

        return Chosen


def choose_interface() -> None:
    """Has gloo use the interface with this node's address, unless the user has named one."""
    address = ray.util.get_node_ip_address()
    for name, found in psutil.net_if_addrs().items():
        if address in {each.address for each in found}:
            settings.export({"GLOO_SOCKET_IFNAME": name})


def build_trainer(plan: FitPlan, *, max_workers: int) -> TorchTrainer:
    """A trainer with at most `max_workers` workers that resumes the run from its storage."""
    first = plan.pipeline().stages[0]
    parallel = first.parallel
    filesystem, path = storage.resolve(first.run.storage)
    return TorchTrainer(
        train_worker,
        train_loop_config=asdict(plan),
        torch_config=NodeInterfaces(
            backend=collective_backend(parallel.device),
            # Watchdogs come first: they say where a rank hangs.
            timeout_s=round(max(recipe.guard.hang_seconds for recipe in plan.pipeline().stages)) + HANG_MARGIN_S,
        ),
        scaling_config=scaling_config(parallel, max_workers=max_workers),
        run_config=ray.train.RunConfig(
            name=plan.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=first.checkpoint.max_failures),
            callbacks=[CheckpointPruner(plan), StreamStandbyKeeper(parallel.data_actors)],
            worker_runtime_env=worker_runtime_env(parallel.device),
        ),
        validation_config=validation_config(plan),
        datasets=datasets(plan),
        dataset_config=data_config(parallel.data_labels, stream_encoders(plan)),
    )


def validation_config(plan: FitPlan) -> ValidationConfig | None:
    """The task with which Ray Train validates a checkpoint while training continues; None without validations."""
    pipeline = plan.pipeline()
    evaluate = next((recipe.evaluate for recipe in pipeline.stages if recipe.evaluate.every is not None), None)
    if evaluate is None:
        return None
    gpus = evaluate.gpus * gpus_per_worker(pipeline.stages[0].parallel.device)
    return ValidationConfig(
        fn=validate_checkpoint,
        task_config=ValidationTaskConfig(fn_kwargs={"plan": asdict(plan)}),
        ray_remote_kwargs={"num_cpus": evaluate.cpus, "num_gpus": gpus},
    )
