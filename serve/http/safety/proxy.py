"""What Serve's HTTP proxy lacks against clients that are hostile or slow, loaded into it by Serve itself.

uvicorn, which the proxy runs, bounds neither the size of a request's head nor the time until it is there, and keeps a
reply for as long as its client does not read it. One head without end takes all of the proxy's time, so
that Serve kills it. `serve.deployments.proxy` loads `guards` into each proxy; see docs/deploying.md.
"""

import asyncio
import json
import resource

import uvicorn.protocols.http.auto
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.http.ids import ID, new_id

# Serve reads them as UTF-8, and fails on anything else.
_READ_BY_SERVE = (
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"x-session-id",
    b"serve-multiplexed-model-id",
)
_TOO_LARGE = "the request's head is too large: send fewer and shorter headers"


def guards() -> list[Middleware]:
    """Called in each proxy before it listens: makes it speak HTTP by `GuardedProtocol`."""
    uvicorn.protocols.http.auto.AutoHTTPProtocol = GuardedProtocol
    return [Middleware(ProxyHeaders)]


class ProxyHeaders:
    """Gives a request its id, which the logs of proxy and ingress then share, and drops what Serve cannot read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        kept = [(name, value) for name, value in scope.get("headers", ()) if _can_be_read(name, value)]
        identity = new_id()

        async def send_once(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message["headers"]))
                headers[ID] = identity  # Serve adds a second one
                message = {**message, "headers": headers.raw}
            await send(message)

        await self._app({**scope, "headers": [*kept, (ID.encode(), identity.encode())]}, receive, send_once)


def _can_be_read(name: bytes, value: bytes) -> bool:
    name = name.lower().replace(b"_", b"-")
    return name != ID.encode() and (value.isascii() or name not in _READ_BY_SERVE)


class GuardedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with limits. The head of a request is bounded in bytes and time, and so is what surrounds its body.

    A client that takes less than `least_bytes` of a reply in `stall_s` loses its connection, and so do one that sends
    many requests before it has read a reply, and the newest one when there are too many. Times are in seconds.
    """

    head_bytes = 64 * 1024
    head_s = 20.0
    stall_s = 60.0
    least_bytes = 64 * 1024
    most_pipelined = 16  # a request of 20 bytes takes kilobytes here
    most_connections = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2  # the rest is for Ray

    _overhead = 0  # bytes of the current request that are not its body, less an allowance for the frames of chunks
    _is_whole = False  # the current request has arrived
    _deadline: asyncio.TimerHandle | None = None
    _stalling: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a head."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            transport.abort()
        else:
            self._expect_more()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends all waiting."""
        _off(self._deadline)
        _off(self._stalling)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads a part of a request."""
        self._overhead += len(data)
        super().data_received(data)
        if len(self.pipeline) > self.most_pipelined:
            self.transport.abort()
        if self._overhead > self.head_bytes and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._is_whole = False
        self._expect_more()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The time of the body is bounded by the application."""
        _off(self._deadline)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A chunk of one byte has a frame of five."""
        self._overhead = max(0, self._overhead - 8 * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has arrived."""
        self._is_whole, self._overhead = True, 0
        _off(self._deadline)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """What is left of a body, which the application did not want, is read for a while: then the client reads."""
        super().on_response_complete()
        if self.transport.is_closing():  # once the client has read
            self._watch_rest()
        elif not self._is_whole:
            self._expect_more()

    def timeout_keep_alive_handler(self) -> None:
        """The client has been silent for long; it may still read."""
        super().timeout_keep_alive_handler()
        self._watch_rest()

    def pause_writing(self) -> None:
        """The client does not read as fast as the application writes."""
        super().pause_writing()
        self._watch_rest()

    def resume_writing(self) -> None:
        """The client has read."""
        _off(self._stalling)
        super().resume_writing()
        if self.transport.is_closing():  # a little is left, and the connection ends once that is read
            self._watch_rest()

    def _watch_rest(self) -> None:
        self._watch_writes(self.transport.get_write_buffer_size() + self.least_bytes)

    def _watch_writes(self, before: int) -> None:
        _off(self._stalling)
        left = self.transport.get_write_buffer_size()
        if before - left < self.least_bytes:
            self.transport.abort()
        else:
            self._stalling = self.loop.call_later(self.stall_s, self._watch_writes, left)

    def _expect_more(self) -> None:
        _off(self._deadline)
        self._deadline = self.loop.call_later(self.head_s, self.transport.abort)

    def _refuse(self) -> None:
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            error = {"message": _TOO_LARGE, "type": "invalid_request_error", "param": None, "code": None}
            body = json.dumps({"error": error}).encode()
            head = f"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(f"{head}content-type: application/json\r\nconnection: close\r\n\r\n".encode() + body)
        self.transport.close()


def _off(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
