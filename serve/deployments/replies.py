"""Expected errors of a replica as values, since Serve logs a traceback for every exception."""

from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from blip3o.errors import Blip3oError
from serve.protocol import EngineError

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
