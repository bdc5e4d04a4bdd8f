"""Replies of a replica: expected errors are values, since Serve logs a traceback for every exception."""

from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from blip3o.errors import Blip3oError
from serve.protocol import (
    Backend,
    ChatEvent,
    ChatReply,
    ChatRequest,
    EngineError,
    GenerateReply,
    GenerateRequest,
    ImageEvent,
    ModelInfo,
)

T = TypeVar("T")


async def error_as_value(work: Awaitable[T]) -> T | Exception:
    """Returns expected errors instead of raising them."""
    try:
        return await work
    except (Blip3oError, EngineError) as error:
        return error


async def errors_as_values(events: AsyncIterator[T]) -> AsyncIterator[T | Exception]:
    """As `error_as_value`, for a stream: an error is its last item."""
    try:
        async for event in events:
            yield event
    except (Blip3oError, EngineError) as error:
        yield error


class Answering:
    """What the HTTP API asks of a replica, whatever its backend is."""

    _backend: Backend

    async def describe(self) -> ModelInfo | Exception:
        """The model's properties, or the error."""
        return await error_as_value(self._backend.describe())

    async def generate(self, request: GenerateRequest) -> GenerateReply | Exception:
        """Images, or the error."""
        return await error_as_value(self._backend.generate(request))

    async def chat(self, request: ChatRequest) -> ChatReply | Exception:
        """A reply, or the error."""
        return await error_as_value(self._backend.chat(request))

    async def stream_images(self, request: GenerateRequest) -> AsyncIterator[ImageEvent | Exception]:
        """Images as they are done, and the reply, or the error."""
        async for event in errors_as_values(self._backend.stream_images(request)):
            yield event

    async def stream_chat(self, request: ChatRequest) -> AsyncIterator[ChatEvent | Exception]:
        """The pieces of a reply, and the reply, or the error."""
        async for event in errors_as_values(self._backend.stream_chat(request)):
            yield event
