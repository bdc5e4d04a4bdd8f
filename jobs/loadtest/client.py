"""Sends one request and times it: when it was due, was sent, had its first event, and was answered."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from jobs.loadtest.workload import Call

_DONE = "[DONE]"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One request. Times are seconds from the start of its phase; `error` is "" for an answer.

    `first`: when the first preview, or the first token, came; None where there was none. `images` and `tokens`: those
    that came.
    """

    label: str
    due: float
    sent: float
    done: float
    first: float | None
    images: int
    tokens: int
    error: str

    @property
    def latency(self) -> float:
        """From when it was due, so that a wait for a free client counts."""
        return self.done - self.due

    @property
    def to_first(self) -> float | None:
        """From when it was due to its first preview or token."""
        return None if self.first is None else self.first - self.due

    def row(self) -> dict[str, Any]:
        """For a file of JSON."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


class _RefusedError(Exception):
    """The server's answer is an error, of this class."""


@dataclass
class _Reply:
    first: float | None = None
    images: int = 0
    tokens: int = 0


class Client:
    """Connections to a server."""

    def __init__(self, url: str, *, key: str | None, timeout_s: float, connections: int) -> None:
        """`key` is an API key; `timeout_s` bounds each request."""
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._connections = connections

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=self._connections)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=self._timeout, connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def ask(self, call: Call, start: float) -> Outcome:
        """Sends a request now; `start` is the loop's time at which its phase began."""
        clock = asyncio.get_running_loop().time
        sent = clock()
        reply, error = _Reply(), ""
        try:
            async with self._session.post(self._url + call.work.path, json=call.body) as response:
                if response.status != 200:
                    raise _RefusedError(f"{response.status} {_code(await response.read())}")
                if call.work.streams:
                    await _read_stream(response, reply, clock)
                else:
                    reply.images = _count_images(await response.read())
            if call.work.kind == "image" and reply.images != call.body["n"]:
                raise _RefusedError("incomplete reply")
        except _RefusedError as refused:
            error = str(refused)
        except TimeoutError:
            error = "timeout"
        except aiohttp.ClientError as broken:
            error = type(broken).__name__
        return Outcome(
            label=call.work.label,
            due=sent - start if call.due is None else call.due,
            sent=sent - start,
            done=clock() - start,
            first=None if reply.first is None else reply.first - start,
            images=reply.images,
            tokens=reply.tokens,
            error=error,
        )


def _code(body: bytes) -> str:
    """The class of an error, as the server names it."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"] or error["type"])
    except (ValueError, LookupError, TypeError):
        return "no error of this API"


def _count_images(body: bytes) -> int:
    try:
        return sum(bool(item["b64_json"]) for item in json.loads(body)["data"])
    except (ValueError, LookupError, TypeError):
        return 0


async def _read_stream(response: aiohttp.ClientResponse, reply: _Reply, clock: Any) -> None:  # noqa: ANN401 - a method
    """Counts what comes. Raises `_RefusedError` for an error in the stream, or if it ends too early."""
    async for data in _events(response):
        if data == _DONE:
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise _RefusedError("the stream is not JSON") from None
        if error := event.get("error"):
            raise _RefusedError(f"in the stream: {error.get('code') or error.get('type')}")
        is_preview = event.get("type") == "image_generation.partial_image"
        is_text = any(choice["delta"].get("content") for choice in event.get("choices", ()))
        if reply.first is None and (is_preview or is_text):
            reply.first = clock()
        reply.images += event.get("type") == "image_generation.completed"
        reply.tokens += (event.get("usage") or {}).get("completion_tokens", 0)
    raise _RefusedError("the stream ended early")


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """The data of server-sent events. They may be longer than the lines that aiohttp reads."""
    left = b""
    async for piece in response.content.iter_any():
        *events, left = (left + piece).split(b"\n\n")
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data: "):
                    yield line[6:].decode()
