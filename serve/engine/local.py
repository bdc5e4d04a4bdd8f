"""The backend of the HTTP API for an engine in this process."""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import TypeVar

from serve.engine.engine import Engine
from serve.protocol import (
    ChatEvent,
    ChatReply,
    ChatRequest,
    GenerateReply,
    GenerateRequest,
    ImageEvent,
    ModelInfo,
    ReplicaMetrics,
)

EventT = TypeVar("EventT")
ReplyT = TypeVar("ReplyT")


class LocalBackend:
    """Calls an engine from asyncio."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def check(self) -> None:
        """Raises `UnavailableError` if the engine is not running."""
        self._engine.check()

    async def describe(self) -> ModelInfo:
        """The model's properties. Raises `UnavailableError` if the engine is not running."""
        self._engine.check()
        return self._engine.describe()

    async def generate(self, request: GenerateRequest) -> GenerateReply:
        """Images; cancellation frees their rows."""
        return await asyncio.wrap_future(self._engine.generate(request))

    async def stream_images(self, request: GenerateRequest) -> AsyncIterator[ImageEvent]:
        """Images as they are done, and the reply; closing the iterator frees their rows."""
        async for event in stream(functools.partial(self._engine.generate, request)):
            yield event

    async def chat(self, request: ChatRequest) -> ChatReply:
        """A reply; cancellation drops the request."""
        return await asyncio.wrap_future(self._engine.chat(request))

    async def stream_chat(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """The pieces of a reply, and the reply; closing the iterator drops the request."""
        async for event in stream(functools.partial(self._engine.chat, request)):
            yield event

    async def metrics(self) -> ReplicaMetrics:
        """The engine's metrics: it is the only replica, for as long as its process lives."""
        return ReplicaMetrics(replicas={str(os.getpid()): self._engine.metrics()})


async def stream(start: Callable[[Callable[[EventT], None]], "Future[ReplyT]"]) -> AsyncIterator[EventT | ReplyT]:
    """The events that an engine sends from its threads, and the result of the future that `start` returns."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[EventT | None] = asyncio.Queue()

    def send(event: EventT | None) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    future = start(send)
    future.add_done_callback(lambda _: send(None))
    try:
        while (event := await events.get()) is not None:
            yield event
        yield future.result()
    finally:
        future.cancel()
