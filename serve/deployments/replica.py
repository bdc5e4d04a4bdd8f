"""One replica of the model: an engine with a bounded queue, in a process of its own. Only replicas import torch."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, TypeVar

from ray import serve as ray_serve

from blip3o.data.text.templates import Turn
from blip3o.errors import Blip3oError, BundleError, RequestError
from serve.config.options import ReplicaConfig
from serve.deployments.autoscaling import ROWS, WORK
from serve.deployments.progress import Progress
from serve.metrics import EngineMetrics
from serve.protocol import (
    MAX_IMAGES,
    ChatEvent,
    ChatReply,
    ChatRequest,
    EngineError,
    GenerateReply,
    GenerateRequest,
    ImageEvent,
    ModelInfo,
)

if TYPE_CHECKING:
    from serve.engine.engine import EngineStats

T = TypeVar("T")

logger = logging.getLogger(__name__)

_WARM_UP = "a circle"


class Generator:
    """One replica of the model."""

    def __init__(self, config: ReplicaConfig) -> None:
        """Loads the bundle and warms it up: Serve sends no request before.

        Raises `BundleError` if it is invalid or another one than was deployed, `ConfigError` if a reserved GPU is not
        visible or cannot run it as configured.
        """
        import torch

        from blip3o.bundle.reading import load_bundle
        from blip3o.device import select
        from serve.engine.engine import Engine
        from serve.engine.local import LocalBackend

        torch.set_num_threads(config.threads)
        device = select("gpu" if config.num_gpus else "cpu")
        pipeline = load_bundle(
            config.bundle,
            device=device,
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
        self._engine = Engine(pipeline, max_waiting=config.max_waiting)
        self._engine.start()
        self._backend = LocalBackend(self._engine)
        self._progress = Progress(config.stuck_after_s, time.monotonic)
        self._warm_up(config)

    def _warm_up(self, config: ReplicaConfig) -> None:
        """Makes one of everything that requests ask for, so that the first of them is not the slowest.

        A denoiser that is compiled or recorded has one program for each width of the batch: each one runs.
        """
        most = 1 if config.execution == "eager" else min(config.batch_size, MAX_IMAGES)
        try:
            for guidance_scale in (1.0, 2.0):
                for images in (2**power for power in range(most.bit_length())):
                    self._engine.generate(
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
        self._engine.chat(ChatRequest(turns=turns, images=(), max_tokens=1)).result()

    async def describe(self) -> ModelInfo | Exception:
        """The model's properties, or the error."""
        return await _error_as_value(self._backend.describe())

    async def generate(self, request: GenerateRequest) -> GenerateReply | Exception:
        """Images, or the error."""
        return await _error_as_value(self._backend.generate(request))

    async def chat(self, request: ChatRequest) -> ChatReply | Exception:
        """A reply, or the error."""
        return await _error_as_value(self._backend.chat(request))

    async def stream_images(self, request: GenerateRequest) -> AsyncIterator[ImageEvent | Exception]:
        """Images as they are done, and the reply, or the error."""
        async for event in _errors_as_values(self._backend.stream_images(request)):
            yield event

    async def stream_chat(self, request: ChatRequest) -> AsyncIterator[ChatEvent | Exception]:
        """The pieces of a reply, and the reply, or the error."""
        async for event in _errors_as_values(self._backend.stream_chat(request)):
            yield event

    async def metrics(self) -> tuple[str, EngineMetrics]:
        """The name of this replica, and its metrics."""
        return ray_serve.get_replica_context().replica_id.unique_id, self._engine.metrics()

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


async def _error_as_value(work: Awaitable[T]) -> T | Exception:
    """Returns expected errors instead of raising them, since Serve logs a traceback for every exception."""
    try:
        return await work
    except (Blip3oError, EngineError) as error:
        return error


async def _errors_as_values(events: AsyncIterator[T]) -> AsyncIterator[T | Exception]:
    """As `_error_as_value`, for a stream: an error is its last item."""
    try:
        async for event in events:
            yield event
    except (Blip3oError, EngineError) as error:
        yield error
