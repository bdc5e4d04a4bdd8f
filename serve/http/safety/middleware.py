"""The outermost layer: request ids, limits of the body, headers of every reply, and a record of every request."""

import asyncio
import json
import re
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blip3o.errors import one_line
from serve.http.config import HttpConfig
from serve.http.errors import CLIENT_GONE, ID, ApiError

# The page adds a content security policy of its own.
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
EVENT_STREAM = "text/event-stream"
_READ_ON = 2  # as many times the largest body are read before the connection ends
_OWN_ID = re.compile(r"req_[0-9a-f]{24}")


def new_id() -> str:
    """An id for a request."""
    return f"req_{secrets.token_hex(12)}"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One request, without anything that its sender wrote. `key` is the name of the API key; `route` a route's path.

    `first_event_s` is when a streamed reply began, seconds after the request's arrival; None if it was not streamed.
    """

    request_id: str
    method: str
    route: str
    status: int
    seconds: float
    sent_bytes: int
    key: str
    first_event_s: float | None = None


Report = Callable[[Record], None]


class RequestMiddleware:
    """Gives each request an id, limits the size of its body and its time, and strips trailing slashes from its path."""

    def __init__(self, app: ASGIApp, config: HttpConfig, reports: Sequence[Report]) -> None:
        self._app = app
        self._config = config
        self._reports = reports
        self._bodies = _Bodies(config.max_bodies_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(ID, "")  # of the proxy in front, whose log has it too
        scope.setdefault("state", {})["request_id"] = given if _OWN_ID.fullmatch(given) else new_id()
        scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        reply = _Reply(send, scope["state"]["request_id"], self._config.write_timeout_s)
        body = _BoundedBody(scope, receive, self._config, self._bodies)
        began = time.monotonic()
        try:
            await self._app(scope, body.receive, reply.send)
        except _StalledError:
            reply.status = CLIENT_GONE  # the server ends the connection: the reply is not complete
        finally:
            body.release()
            route = scope.get("route")
            record = Record(
                request_id=scope["state"]["request_id"],
                method=one_line(scope["method"], limit=20),
                route=route.path if route else "",
                status=reply.status,
                seconds=round(time.monotonic() - began, 4),
                sent_bytes=reply.sent_bytes,
                key=scope["state"].get("owner", ""),
                first_event_s=None if reply.stream_began is None else round(reply.stream_began - began, 4),
            )
            for report in self._reports:
                report(record)


class _StalledError(Exception):
    """The client does not take its reply."""


class _Reply:
    """Sends a reply, with the headers of all replies, to a client that takes it."""

    def __init__(self, send: Send, identity: str, timeout_s: float) -> None:
        self._send = send
        self._headers = {**_HEADERS, ID: identity}
        self._timeout_s = timeout_s
        self.status = CLIENT_GONE  # until there is another one
        self.sent_bytes = 0
        self.stream_began: float | None = None

    async def send(self, message: Message) -> None:
        """One message of the reply. Raises `_StalledError` if the client has not taken enough of it in time."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=list(message["headers"]))
            if headers.get("content-type", "").startswith(EVENT_STREAM):
                self.stream_began = time.monotonic()  # a stream starts with its first event, not before
            for name, value in self._headers.items():
                headers.setdefault(name, value)
            message = {**message, "headers": headers.raw}
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(message)
        except TimeoutError:
            raise _StalledError from None
        self.sent_bytes += len(message.get("body", b""))


class _Bodies:
    """The bytes of the bodies that this process holds."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0

    def take(self, count: int) -> None:
        """Raises `ApiError` 429 if there is no room: the client should come again, and others are not to suffer."""
        if self._held + count > self._most:
            message = "this server holds as many bytes of requests as it may: try again in 1 s"
            raise ApiError(429, message, code="server_busy", headers={"retry-after": "1"})
        self._held += count

    def release(self, count: int) -> None:
        """Gives bytes back."""
        self._held -= count


class _BoundedBody:
    """Receives a body of bounded size in bounded time."""

    def __init__(self, scope: Scope, receive: Receive, config: HttpConfig, bodies: _Bodies) -> None:
        self._receive = receive
        self._config = config
        self._bodies = bodies
        claimed = Headers(scope=scope).get("content-length", "")
        self._claimed = int(claimed) if claimed.isdecimal() and len(claimed) < 20 else 0
        self._seen = self._held = 0
        self._end: float | None = None
        self._whole = False

    async def receive(self) -> Message:
        """The next message.

        Raises `HTTPException` 413 for a body that is too large, 408 for one that is too slow, and `ApiError` 429.
        """
        if self._whole:  # then only the disconnect follows
            return await self._receive()
        patience = _READ_ON * self._config.max_body_bytes
        too_large = HTTPException(413, f"the body is larger than {self._config.max_body_bytes} bytes")
        if self._claimed > patience:
            raise too_large
        message = await self._next()
        while self._is_large():
            # Many clients read a reply only once their body is sent: a little is read on, but not kept.
            if self._whole or self._seen > patience:
                raise too_large
            message = await self._next()
        return message

    def _is_large(self) -> bool:
        return max(self._claimed, self._seen) > self._config.max_body_bytes

    async def _next(self) -> Message:
        clock = asyncio.get_running_loop().time
        self._end = self._end or clock() + self._config.read_timeout_s
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
        except TimeoutError:
            seconds = f"{self._config.read_timeout_s:g}"
            raise HTTPException(408, f"the body did not arrive within {seconds} s: send it faster") from None
        count = len(message.get("body", b""))
        self._seen += count
        self._whole = not message.get("more_body", False)
        if not self._is_large():
            self._bodies.take(count)
            self._held += count
        return message

    def release(self) -> None:
        """The request has ended, and its body is gone."""
        self._bodies.release(self._held)


def log_access(record: Record) -> None:
    """Writes a line of JSON to stderr."""
    sys.stderr.write(json.dumps({"time": round(time.time(), 3), **asdict(record)}) + "\n")
    sys.stderr.flush()
