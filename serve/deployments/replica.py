"""One replica of the model: an engine with a bounded queue, in a process of its own. Only replicas import torch."""

import functools
import logging
import time
from typing import TYPE_CHECKING

from ray import serve as ray_serve

from blip3o.data.text.templates import Turn
from blip3o.errors import BundleError, RequestError
from serve.config.options import ReplicaConfig, Stage
from serve.deployments.autoscaling import ROWS, WORK
from serve.deployments.phases import Phases
from serve.deployments.progress import Progress
from serve.deployments.replies import Answering
from serve.protocol import MAX_IMAGES, ChatRequest, GenerateRequest, ReplicaMetrics

if TYPE_CHECKING:
    from blip3o.inference.pipeline import Blip3oPipeline
    from serve.engine.base import EngineBase, EngineStats
    from serve.engine.engine import Engine

logger = logging.getLogger(__name__)

_WARM_UP = "a circle"


def open_pipeline(config: ReplicaConfig, stage: Stage | None = None) -> "Blip3oPipeline":
    """The bundle as configured, or what one stage needs of it.

    Raises `BundleError` if it is invalid or another one than was deployed, `ConfigError` if a reserved GPU is not
    visible or cannot run it as configured.
    """
    import torch

    from blip3o.device import select
    from serve.split.loading import load_stage, load_whole

    torch.set_num_threads(config.threads)
    pipeline = (functools.partial(load_stage, stage) if stage else load_whole)(
        config.bundle,
        device=select("gpu" if config.num_gpus else "cpu"),
        batch_size=config.batch_size,
        decode_batch_size=config.decode_batch_size,
        precision=config.precision,
        execution=config.execution,
    )
    if config.bundle_sha256 not in ("", pipeline.bundle_sha256):
        raise BundleError(
            f"{config.bundle} holds another bundle than was deployed ({pipeline.bundle_sha256[:12]}…, not "
            f"{config.bundle_sha256[:12]}…): deploy it again, to a URI of its own"
        )
    return pipeline


def replica_name() -> str:
    """The name of this replica, which no other one ever gets."""
    name: str = ray_serve.get_replica_context().replica_id.unique_id
    return name


class Replica:
    """A process with an engine, as Serve sees it: its load, its health and its end."""

    _engine: "EngineBase"

    def _begin(self, engine: "EngineBase", *, stuck_after_s: float) -> None:
        """Starts the engine, which must finish something every `stuck_after_s` seconds while it has work."""
        self._engine = engine
        self._engine.start()
        self._progress = Progress(stuck_after_s, time.monotonic)

    async def metrics(self) -> ReplicaMetrics:
        """The metrics of this replica, by its name."""
        return ReplicaMetrics(replicas={replica_name(): self._engine.metrics()})

    async def stats(self) -> "EngineStats":
        """The load and the totals of this replica."""
        return self._engine.stats()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve: what `serve.deployments.autoscaling` decides by."""
        stats = self._engine.stats()
        return {ROWS: stats.in_work, WORK: stats.seconds_ahead}

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica if this raises three times.

        It has a way of its own into this process, past the queue of requests, and does not wait for the engine.
        """
        self._engine.check()
        stats = self._engine.stats()
        self._progress.check({**stats.totals, "passes": stats.passes}, has_work=stats.in_work > 0)

    def __del__(self) -> None:
        """Called by Serve when the replica stops; there is no engine if the constructor failed."""
        if hasattr(self, "_engine"):
            self._engine.close()


class Generator(Replica, Answering):
    """One replica of the model, or of its stage for conversations."""

    def __init__(self, config: ReplicaConfig, stage: Stage | None = None) -> None:
        """Loads the bundle and warms it up: Serve sends no request before. Raises as `open_pipeline` does."""
        self._phases = Phases()
        from serve.engine.engine import Engine
        from serve.engine.local import LocalBackend

        self._phases.end("imports")
        pipeline = open_pipeline(config, stage)
        self._phases.end("load")
        engine = Engine(pipeline, max_waiting=config.max_waiting)
        self._begin(engine, stuck_after_s=config.stuck_after_s)
        self._backend = LocalBackend(engine)
        self._phases.end("widths")
        self._warm_up(engine, config)
        self._phases.end("warm_up")
        self._phases.log()

    def _warm_up(self, engine: "Engine", config: ReplicaConfig) -> None:
        """Makes one of everything that requests ask for, so that the first of them is not the slowest.

        A denoiser that is compiled or recorded has one program for each width of the batch: each one runs.
        """
        most = 1 if config.execution == "eager" else min(config.batch_size, MAX_IMAGES)
        try:
            for guidance_scale in (1.0, 2.0):
                for images in (2**power for power in range(most.bit_length())):
                    engine.generate(
                        GenerateRequest(
                            prompt=_WARM_UP,
                            seeds=tuple(range(images)),
                            num_inference_steps=1,
                            guidance_scale=guidance_scale,
                        )
                    ).result()
        except RequestError:  # a bundle that only chats
            logger.info("the bundle cannot generate images: nothing to warm up there")
        turns = (Turn(role="user", text=_WARM_UP),)
        engine.chat(ChatRequest(turns=turns, images=(), max_tokens=1)).result()

    async def start_seconds(self) -> dict[str, float]:
        """How long each phase of the start took."""
        return self._phases.seconds
