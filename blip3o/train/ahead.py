"""Ahead of the caller: a thread makes the next step's value, or the first of a stream, while the caller works."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Generic, Self, TypeVar

Value = TypeVar("Value")

THREAD_NAME = "one-step-ahead"


class OneAhead(Generic[Value]):
    """Calls `make` for the steps of a range, in order, in one thread that is at most one step ahead of the caller.

    Only inside a `with` block. An error of `make` is raised by the `take` of its step, and steps before it are not
    affected; `make` is not called again. Leaving the block ends the thread. After an error in the block, that may be a
    moment later, when the call that is running returns: nothing waits for a source that hangs.
    """

    def __init__(self, make: Callable[[int], Value], steps: range) -> None:
        self._make, self._steps = make, steps
        self._next: Future[Value] | None = None

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=THREAD_NAME)
        self._start(self._steps.start)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown(wait=kind is None, cancel_futures=True)

    def take(self, step: int) -> Value:
        """Waits for the value of a step, and starts on the next. Steps must be taken in order.

        Raises what `make` raised.
        """
        assert self._next is not None  # within the range
        value = self._next.result()
        self._start(step + 1)
        return value

    def _start(self, step: int) -> None:
        self._next = self._thread.submit(self._make, step) if step in self._steps else None


class StartedEarly(Iterator[Value]):
    """An iterator over `source` whose first value a thread fetches from `start()` on.

    A stream that takes seconds to deliver its first value does so while its reader builds a model. The values and their
    order are those of `source`; an error of the first one is raised by the `next` that asks for it.
    """

    def __init__(self, source: Iterator[Value]) -> None:
        self._source = source
        self._first: Future[list[Value]] | None = None
        self._started = False

    def start(self) -> None:
        """Begins to fetch the first value, and returns at once. Later calls do nothing."""
        if not self._started:
            self._started = True
            thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=THREAD_NAME)
            self._first = thread.submit(lambda: list(islice(self._source, 1)))
            thread.shutdown(wait=False)

    def __next__(self) -> Value:
        self.start()
        if self._first is None:
            return next(self._source)
        first, self._first = self._first.result(), None
        if not first:
            raise StopIteration
        return first[0]
