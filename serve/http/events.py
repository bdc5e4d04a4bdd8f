"""Waiting for a reply while its client is there, and server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from blip3o.errors import ConfigError, RequestError
from serve.http.errors import CLIENT_GONE, ApiError, as_api_error, error_body
from serve.protocol import BusyError, DeadlineError, EngineError, UnavailableError

T = TypeVar("T")

DONE = "data: [DONE]\n\n"
# Anything else is a bug, which the app logs.
_EXPECTED = (ApiError, RequestError, ConfigError, BusyError, UnavailableError, DeadlineError, EngineError)


class _DefectError(Exception):
    """A bug, which is its cause, ended the work for a reply."""


class Client:
    """The client of a request whose body has been read. Its next message can only be that it disconnects.

    `subject` is the field that a model rejects if it rejects the request. `seconds` bound all that is waited for.
    """

    def __init__(self, request: Request, *, subject: str, seconds: float) -> None:
        self.subject = subject
        self._seconds = seconds
        self._end = asyncio.get_running_loop().time() + seconds
        self._gone = asyncio.ensure_future(request.receive())

    async def wait(self, work: Awaitable[T]) -> T:
        """Waits for the work, and cancels it if the client disconnects first, or if the time is over.

        Raises `ApiError`.
        """
        task = asyncio.ensure_future(work)
        try:
            left = self._end - asyncio.get_running_loop().time()
            await asyncio.wait({task, self._gone}, return_when=asyncio.FIRST_COMPLETED, timeout=left)
            if task.done():
                error = None if task.cancelled() else task.exception()
                if error is not None and not isinstance(error, _EXPECTED):
                    raise _DefectError from error
                return task.result()
            if not self._gone.done():
                raise DeadlineError(self._seconds)
            raise ApiError(CLIENT_GONE, "the client has disconnected")
        except _EXPECTED as error:
            raise as_api_error(error, self.subject) from error
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})  # it frees its rows before anything else happens

    def leave(self) -> None:
        """Stops watching the client."""
        self._gone.cancel()


@contextmanager
def watching(request: Request, *, subject: str, seconds: float) -> Iterator[Client]:
    """The client of a request, for as long as one reply takes."""
    client = Client(request, subject=subject, seconds=seconds)
    try:
        yield client
    finally:
        client.leave()


def event(data: dict[str, Any], *, name: str | None = None) -> str:
    """One server-sent event."""
    return f"{f'event: {name}' + chr(10) if name else ''}data: {json.dumps(data)}\n\n"


async def stream(client: Client, events: AsyncGenerator[str, None], headers: dict[str, str] | None = None) -> Response:
    """Events as a reply, once the first one is there: until then, an error has a status of its own.

    Raises `ApiError`.
    """
    async with AsyncExitStack() as ends:
        ends.callback(client.leave)
        ends.push_async_callback(events.aclose)
        first = await client.wait(anext(events))
        ends.pop_all()  # from here on, the reply does it
    return _EventStream(client, first, events, headers or {})


class _EventStream(Response):
    """A reply of server-sent events. The client's going closes them."""

    media_type = "text/event-stream"

    def __init__(self, client: Client, first: str, events: AsyncGenerator[str, None], headers: dict[str, str]) -> None:
        super().__init__(headers=headers)
        del self.headers["content-length"]
        self._client, self._first, self._events = client, first, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._events) as events:
                async for text in self._all(events):
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._client.leave()

    async def _all(self, events: AsyncIterator[str]) -> AsyncIterator[str]:
        """The events; an error is the last one."""
        text: str | None = self._first
        try:
            while text is not None:
                yield text
                text = await self._client.wait(anext(events, None))
        except ApiError as error:
            if error.status != CLIENT_GONE:
                yield event(error_body(error))
        except _DefectError as error:
            yield event(error_body(as_api_error(error)))
            raise
