"""The requests that have not ended, and the totals: what the engine's threads share.

A request ends once: resolved, failed or cancelled, by whichever thread is first. Whoever still holds one of its rows
finds it gone, and drops the row.
"""

import functools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from PIL import Image

from blip3o.device import fatal_errors
from blip3o.errors import Blip3oError
from serve.engine.denoise import Condition
from serve.protocol import (
    ChatReply,
    ChatRequest,
    EngineError,
    GenerateReply,
    GenerateRequest,
    ImageEvent,
    UnavailableError,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A conversation that waits for its reply."""

    number: int
    request: ChatRequest
    prompt_tokens: int
    future: "Future[ChatReply]" = field(default_factory=Future)


@dataclass(kw_only=True)
class Generation:
    """A request for images. `images` has those that are decoded, by number: image i has seed i, whenever it is done."""

    number: int
    request: GenerateRequest
    prompt_tokens: int
    future: "Future[GenerateReply]" = field(default_factory=Future)
    condition: Condition | None = None
    images: dict[int, Image.Image] = field(default_factory=dict)
    on_event: Callable[[ImageEvent], None] | None = None


class _HasNumber(Protocol):
    @property
    def number(self) -> int: ...


N = TypeVar("N", bound=_HasNumber)


class Requests:
    """A table of requests by number. `changed` guards it and everything else that the threads share."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.is_open = True
        self.generations: dict[int, Generation] = {}
        self.chats: dict[int, Chat] = {}
        self.totals: Counter[str] = Counter()

    def add(self, request: Generation | Chat) -> None:
        """Accepts a request. If its future is cancelled, it ends at once."""
        with self.changed:
            table: dict[int, Any] = self.generations if isinstance(request, Generation) else self.chats
            table[request.number] = request
            self.changed.notify_all()
        future: Future[Any] = request.future
        future.add_done_callback(functools.partial(self._drop_cancelled, request.number))

    def _drop_cancelled(self, number: int, future: "Future[Any]") -> None:
        if future.cancelled() and self._remove(number):
            self.count("cancelled")

    def _remove(self, number: int) -> "Future[Any] | None":
        """Ends a request; returns its future, or None if it had ended before."""
        with self.changed:
            request = self.generations.pop(number, None) or self.chats.pop(number, None)
            self.changed.notify_all()
        return request.future if request else None

    def resolve(self, number: int, reply: GenerateReply | ChatReply) -> None:
        """Ends a request with its reply."""
        future = self._remove(number)
        if future and future.set_running_or_notify_cancel():
            future.set_result(reply)

    def fail(self, number: int, error: Exception) -> None:
        """Ends a request with an error; one that is not the client's becomes an `EngineError`, and is logged."""
        future = self._remove(number)
        if not future:
            return
        if not isinstance(error, Blip3oError):
            logger.error("request %d failed", number, exc_info=error)
            error = EngineError("the model failed on this request")
        self.count("failed")
        if future.set_running_or_notify_cancel():
            future.set_exception(error)

    def close(self) -> None:
        """Accepts nothing any more, and lets the threads end."""
        with self.changed:
            self.is_open = False
            self.changed.notify_all()

    def fail_all(self) -> None:
        """Ends all requests with `UnavailableError`."""
        for number in [*self.generations, *self.chats]:
            self.fail(number, UnavailableError("the engine has stopped: try again"))

    def count(self, what: str) -> None:
        """Adds one to a total."""
        with self.changed:
            self.totals[what] += 1

    def batch_then_single(self, items: Sequence[N], action: Callable[[Sequence[N]], None]) -> None:
        """Runs `action` on all items; if it raises, on each one by itself, so that only the request at fault fails."""
        error = attempt(lambda: action(items)) if items else None
        if error is None:
            return
        if len(items) == 1:
            self.fail(items[0].number, error)
            return
        for item in items:
            self.batch_then_single([item], action)


def attempt(action: Callable[[], None]) -> Exception | None:
    """Runs an action; returns its error, which must end a request and not the thread.

    Raises `fatal_errors`: they must end the thread, so that the health check fails and the replica is replaced.
    """
    try:
        action()
    except fatal_errors():
        raise
    except Exception as error:  # noqa: BLE001 - the loop's boundary: a failed request must not end the others
        return error
    return None
