"""The two Ray Serve deployments: autoscaled replicas of the model, and the HTTP ingress in front of them.

The only file of this package that imports Ray. A replica is one engine with a bounded queue. Serve's queue in front of
the replicas is bounded too, so overload gets 429 instead of ever longer waits. Only the replicas import torch, so the
ingress starts faster and stays small.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from blip3o.errors import Blip3oError
from serve.api import build_api
from serve.config import ServeConfig
from serve.metrics import EngineMetrics
from serve.protocol import (
    BusyError,
    ChatEvent,
    ChatReply,
    ChatRequest,
    EngineError,
    GenerateReply,
    GenerateRequest,
    ImageEvent,
    ModelInfo,
    UnavailableError,
)

if TYPE_CHECKING:
    from serve.engine.engine import EngineStats

T = TypeVar("T")

_RETRY_AFTER_S = 5  # if Serve's own queue is full; a full engine gives an estimate
_SHUTDOWN_S = 120  # for a replica to finish its requests before it is stopped
_HEADROOM = 16
_INGRESS_CPUS = 0.1
_INGRESS_REQUESTS = 1000


class Generator:
    """One replica of the model."""

    def __init__(self, config: ServeConfig) -> None:
        """Loads the bundle.

        Raises `BundleError` if it is invalid, `ConfigError` if a reserved GPU is not visible or cannot run it as
        configured.
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
        self._engine = Engine(pipeline, max_waiting=config.max_waiting)
        self._engine.start()
        self._backend = LocalBackend(self._engine)

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

    async def metrics(self) -> EngineMetrics:
        """The metrics of this replica."""
        return self._engine.metrics()

    async def stats(self) -> "EngineStats":
        """The load and the totals of this replica."""
        return self._engine.stats()

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica if this raises. Does not wait for the engine."""
        self._engine.check()

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


class HandleBackend:
    """The backend of the HTTP API for replicas behind a deployment handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def describe(self) -> ModelInfo:
        """The model's properties."""
        return cast(ModelInfo, await self._call("describe"))

    async def generate(self, request: GenerateRequest) -> GenerateReply:
        """Images; cancellation frees their rows in the replica."""
        return cast(GenerateReply, await self._call("generate", request))

    async def chat(self, request: ChatRequest) -> ChatReply:
        """A reply; cancellation drops the request in the replica."""
        return cast(ChatReply, await self._call("chat", request))

    async def stream_images(self, request: GenerateRequest) -> AsyncIterator[ImageEvent]:
        """Images as they are done, and the reply; closing the iterator frees their rows in the replica."""
        async for event in self._stream("stream_images", request):
            yield cast(ImageEvent, event)

    async def stream_chat(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """The pieces of a reply, and the reply; closing the iterator drops the request in the replica."""
        async for event in self._stream("stream_chat", request):
            yield cast(ChatEvent, event)

    async def metrics(self) -> EngineMetrics:
        """The metrics of one replica."""
        return cast(EngineMetrics, await self._call("metrics"))

    async def _stream(self, method: str, request: object) -> AsyncIterator[object]:
        events = getattr(self._handle.options(stream=True), method).remote(request)
        try:
            async for event in events:
                if isinstance(event, Exception):
                    raise event
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            events.cancel()
            raise
        except BackPressureError:
            raise BusyError(_RETRY_AFTER_S) from None
        except (RayActorError, DeploymentUnavailableError) as error:
            raise UnavailableError("the model's replica was lost: try again") from error

    async def _call(self, method: str, *args: object) -> object:
        response = getattr(self._handle, method).remote(*args)
        try:
            reply = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except BackPressureError:
            raise BusyError(_RETRY_AFTER_S) from None
        except (RayActorError, DeploymentUnavailableError) as error:
            raise UnavailableError("the model's replica was lost: try again") from error
        if isinstance(reply, Exception):
            raise reply
        return reply


class Ingress:
    """The HTTP deployment."""

    def __init__(self, generator: DeploymentHandle, name: str) -> None:
        self._generator = generator
        self._name = name

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return build_api(HandleBackend(self._generator), self._name)


def build_app(config: ServeConfig) -> ray_serve.Application:
    """The application of one bundle: `Ingress` in front of `Generator`."""
    # An overloaded engine rejects requests at once, with a time to retry. Serve's limit per replica is higher than the
    # replica's, so that rejections and health checks never queue behind images.
    generator: Any = ray_serve.deployment(
        Generator,
        name="Generator",
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.batch_size,
            "upscale_delay_s": 5,
        },
        max_ongoing_requests=config.max_requests + _HEADROOM,
        max_queued_requests=config.max_waiting,
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
        max_constructor_retry_count=2,
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
    )
    ingress: Any = ray_serve.deployment(
        ray_serve.ingress()(Ingress),
        name="Ingress",
        max_ongoing_requests=_INGRESS_REQUESTS,
        ray_actor_options={"num_cpus": _INGRESS_CPUS},
    )
    return cast(ray_serve.Application, ingress.bind(generator.bind(config), config.name))
