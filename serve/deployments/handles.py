"""The backend of the HTTP API for replicas behind a deployment handle.

A reply is a function of its request, so a request whose replica is lost goes to another one, and its client notices
nothing but a delay: what has been streamed already is not sent again. It does so once: a request that kills its
replicas must not kill all of them.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable
from typing import cast

from ray.serve.handle import DeploymentHandle

from serve.deployments.broadcast import TIMEOUT_S, Replies, ask_all
from serve.deployments.losses import BUSY, LOST, UNAVAILABLE
from serve.protocol import (
    BusyError,
    ChatDelta,
    ChatEvent,
    ChatReply,
    ChatRequest,
    FinishedImage,
    GenerateReply,
    GenerateRequest,
    ImageEvent,
    ModelInfo,
    PartialImage,
    ReplicaMetrics,
    UnavailableError,
)

_RETRY_AFTER_S = 5  # if Serve's own queue is full; a full engine gives an estimate
_ATTEMPTS = 2


class HandleBackend:
    """The replicas of one bundle."""

    def __init__(self, handle: DeploymentHandle, *, timeout_s: float = TIMEOUT_S) -> None:
        """`timeout_s` is how long replicas have to say that they live, and what they have counted."""
        self._handle, self._timeout_s = handle, timeout_s
        self._info: ModelInfo | None = None

    async def describe(self) -> ModelInfo:
        """The model's properties: all replicas have the same, for as long as the application lives."""
        if self._info is None:
            self._info = cast(ModelInfo, await self._call("describe"))
        return self._info

    async def check(self) -> None:
        """Raises `UnavailableError` if no replica answers. Does not pass through their queues."""
        if not (await self._ask_all("describe", until_first=True)).values:
            raise UnavailableError("no replica of the model answers: try again")

    async def metrics(self) -> ReplicaMetrics:
        """Those of every replica that answers, and of those that it knows."""
        replies = await self._ask_all("metrics")
        found: list[ReplicaMetrics] = list(replies.values)
        return ReplicaMetrics(
            replicas={name: metrics for each in found for name, metrics in each.replicas.items()},
            silent=replies.silent + max((each.silent for each in found), default=0),
        )

    async def generate(self, request: GenerateRequest) -> GenerateReply:
        """Images; cancellation frees their rows in the replica."""
        return cast(GenerateReply, await self._call("generate", request))

    async def chat(self, request: ChatRequest) -> ChatReply:
        """A reply; cancellation drops the request in the replica."""
        return cast(ChatReply, await self._call("chat", request))

    async def stream_images(self, request: GenerateRequest) -> AsyncIterator[ImageEvent]:
        """Images as they are done, and the reply; closing the iterator frees their rows in the replica."""
        sent: set[Hashable] = set()
        async for _, event in self._stream("stream_images", request, repeatable=True):
            image = cast(ImageEvent, event)
            if (identity := _identity(image)) not in sent:
                sent.add(identity)
                yield image

    async def stream_chat(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """The pieces of a reply, and the reply; closing the iterator drops the request in the replica."""
        is_drawn = request.temperature > 0 and request.seed is None
        sent = seen = attempt = 0  # characters that the client has, and that this attempt has made
        async for number, event in self._stream("stream_chat", request, repeatable=not is_drawn):
            seen, attempt = (seen, attempt) if number == attempt else (0, number)
            if not isinstance(event, ChatDelta):
                yield cast(ChatEvent, event)
                continue
            fresh = event.text[max(sent - seen, 0) :]
            seen += len(event.text)
            sent = max(sent, seen)
            if fresh:
                yield ChatDelta(text=fresh)

    async def _ask_all(self, method: str, *, until_first: bool = False) -> Replies:
        return await ask_all(self._handle, method, until_first=until_first, timeout_s=self._timeout_s)

    async def _call(self, method: str, *args: object) -> object:
        for attempt in range(_ATTEMPTS):
            response = getattr(self._handle, method).remote(*args)
            try:
                return _value(await response)
            except asyncio.CancelledError:
                response.cancel()
                raise
            except (*BUSY, *UNAVAILABLE, *LOST) as error:
                _raise_unless_lost(error, is_last=attempt == _ATTEMPTS - 1)
        raise AssertionError("the last attempt returns or raises")

    async def _stream(self, method: str, request: object, *, repeatable: bool) -> AsyncIterator[tuple[int, object]]:
        """The events of a stream, each with the number of its attempt; every attempt begins with the first event.

        A stream that is not `repeatable` has no second attempt once it has sent something.
        """
        has_sent = False
        for attempt in range(_ATTEMPTS):
            events = getattr(self._handle.options(stream=True), method).remote(request)
            try:
                async for event in events:
                    yield attempt, _value(event)
                    has_sent = True
            except (asyncio.CancelledError, GeneratorExit):
                events.cancel()
                raise
            except (*BUSY, *UNAVAILABLE, *LOST) as error:
                _raise_unless_lost(error, is_last=attempt == _ATTEMPTS - 1 or (has_sent and not repeatable))
            else:
                return


def _value(reply: object) -> object:
    """What a replica returned; it returns expected errors, and they are raised here."""
    if isinstance(reply, Exception):
        raise reply
    return reply


def _raise_unless_lost(error: Exception, *, is_last: bool) -> None:
    """Raises `BusyError` or `UnavailableError`, unless a replica was lost and there is another attempt."""
    if isinstance(error, BUSY):
        raise BusyError(_RETRY_AFTER_S) from None
    if is_last or isinstance(error, UNAVAILABLE):
        raise UnavailableError("the model's replica was lost: try again") from error


def _identity(event: ImageEvent) -> Hashable:
    """The same for the same event of another attempt."""
    if isinstance(event, PartialImage):
        return event.number, event.partial
    return event.number if isinstance(event, FinishedImage) else None
