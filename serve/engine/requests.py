"""The requests that have not ended, and the counts: what the engine's threads share.

A request ends once: resolved, failed or cancelled, by whichever thread is first. Whoever still holds one of its rows
finds it gone, and drops the row.
"""

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from PIL import Image
from torch import Tensor

from blip3o.device import fatal_errors
from blip3o.errors import Blip3oError
from serve.engine.denoise import Condition
from serve.metrics import EngineMetrics, Recorder
from serve.protocol import (
    ChatEvent,
    ChatReply,
    ChatRequest,
    DeadlineError,
    EngineError,
    GenerateRequest,
    UnavailableError,
)

logger = logging.getLogger(__name__)
Clock = Callable[[], float]


@dataclass(kw_only=True)
class Chat:
    """A conversation without a reply. By the engine's clock, it came at `began`, and got its row at `admitted`."""

    number: int
    request: ChatRequest
    prompt_tokens: int
    began: float
    admitted: float = 0.0
    future: "Future[ChatReply]" = field(default_factory=Future)
    on_event: Callable[[ChatEvent], None] | None = None
    kind = "chat"


@dataclass(kw_only=True)
class Generation:
    """A request for images.

    `prompts` are the token ids of the prompt and, if it has one, of the negative prompt. `states` are their query
    states [N, H] on the CPU, once they were read, and `conditions` what the denoiser makes of them. `images` has those
    that are decoded, by number: image i has seed i, whenever it is done. A stage that runs by itself sends and replies
    with what it makes; the whole engine with an `ImageEvent` and a `GenerateReply`.
    """

    number: int
    request: GenerateRequest
    prompts: Sequence[tuple[int, ...]]
    began: float
    future: "Future[Any]" = field(default_factory=Future)
    on_event: Callable[[Any], None] | None = None
    states: Sequence[Tensor] | None = None
    conditions: Sequence[Condition] | None = None
    images: dict[int, Image.Image] = field(default_factory=dict)
    kind = "generate"

    def send(self, event: object) -> None:
        """Gives an event to who listens."""
        if self.on_event:
            self.on_event(event)


class _HasNumber(Protocol):
    @property
    def number(self) -> int: ...


N = TypeVar("N", bound=_HasNumber)


class Requests:
    """A table of requests by number. `changed` guards it and everything else that the threads share."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.changed = threading.Condition()
        self.is_open = True
        self.generations: dict[int, Generation] = {}
        self.chats: dict[int, Chat] = {}
        self.clock = clock
        self._recorder = Recorder()

    def add(self, request: Generation | Chat) -> None:
        """Accepts a request. If its future is cancelled, it ends at once."""
        with self.changed:
            table: dict[int, Any] = self.generations if isinstance(request, Generation) else self.chats
            table[request.number] = request
            self.changed.notify_all()
        future: Future[Any] = request.future
        future.add_done_callback(functools.partial(self._drop_cancelled, request.number))

    def wait_for(self, ready: Callable[[], object]) -> bool:
        """Waits until `ready`, or the requests are closed; returns whether they are open. Ends requests in time."""
        with self.changed:
            while self.is_open:
                self.expire()
                if ready():
                    break
                due = min((self._due(each) for each in self._all), default=None)
                self.changed.wait(None if due is None or due == float("inf") else max(due - self.clock(), 0.001))
            return self.is_open

    def expire(self) -> None:
        """Ends the requests that are over their deadline."""
        with self.changed:
            late = [request for request in self._all if self._due(request) <= self.clock()]
            for request in late:
                assert request.request.deadline_s is not None, "a request without a deadline is never late"
                self.fail(request.number, DeadlineError(request.request.deadline_s))

    @property
    def _all(self) -> list[Generation | Chat]:
        return [*self.generations.values(), *self.chats.values()]

    @staticmethod
    def _due(request: Generation | Chat) -> float:
        limit = request.request.deadline_s
        return float("inf") if limit is None else request.began + limit

    def _drop_cancelled(self, number: int, future: "Future[Any]") -> None:
        if future.cancelled() and self._remove(number):
            self.count("blip3o_cancelled_total")

    def _remove(self, number: int) -> Generation | Chat | None:
        """Ends a request; returns it, or None if it had ended before."""
        with self.changed:
            request = self.generations.pop(number, None) or self.chats.pop(number, None)
            self.changed.notify_all()
        return request

    def resolve(self, number: int, reply: object) -> None:
        """Ends a request with its reply."""
        request = self._remove(number)
        if not request:
            return
        self.observe("blip3o_e2e_latency_seconds", self.clock() - request.began, request.kind)
        self.count("blip3o_request_success_total", request.kind)
        future: Future[Any] = request.future
        if future.set_running_or_notify_cancel():
            future.set_result(reply)

    def fail(self, number: int, error: Exception) -> None:
        """Ends a request with an error; one that is not the client's becomes an `EngineError`, and is logged."""
        request = self._remove(number)
        if not request:
            return
        if not isinstance(error, Blip3oError):
            logger.error("request %d failed", number, exc_info=error)
            error = EngineError("the model failed on this request")
        self.count("blip3o_errors_total", type(error).__name__)
        future: Future[Any] = request.future
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

    def count(self, name: str, label: str = "", *, by: float = 1) -> None:
        """Adds to a counter of `serve.metrics`."""
        with self.changed:
            self._recorder.add(name, label, by=by)

    def observe(self, name: str, value: float, label: str = "") -> None:
        """Adds an observation to a histogram of `serve.metrics`."""
        with self.changed:
            self._recorder.observe(name, value, label)

    def admitted(self, request: Generation | Chat) -> None:
        """Notes that a request has waited until now for its first row."""
        self.observe("blip3o_queue_seconds", self.clock() - request.began, request.kind)

    def metrics(self, gauges: Mapping[tuple[str, str], float]) -> EngineMetrics:
        """All counts, with these gauges."""
        with self.changed:
            return self._recorder.snapshot(gauges)

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
