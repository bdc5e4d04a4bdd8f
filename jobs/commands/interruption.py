"""How commands end by a signal: Ctrl-C (SIGINT), or SIGTERM as schedulers send it.

Python raises `KeyboardInterrupt` for the first. Handlers run in the main thread, so elsewhere nothing is installed.
"""

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

Value = TypeVar("Value")
Handlers = Mapping[int, Any]  # by signal, as `signal.signal` takes and returns them
logger = logging.getLogger(__name__)


class Stopped(BaseException):
    """A signal has ended the work. As with `KeyboardInterrupt`, no handler of errors may swallow it."""

    def __init__(self, signum: int, message: str = "terminated") -> None:
        """`message` says what became of the work."""
        super().__init__(message)
        self.signum = signum


def terminate_by_exception() -> Handlers:
    """From now on, SIGTERM raises `Stopped`; returns what it did. Ray installs a handler of its own when it starts."""
    return install({signal.SIGTERM: _raise_stopped})


def install(handlers: Handlers) -> Handlers:
    """Installs handlers and returns those that they replace; outside the main thread, nothing."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}


def _raise_stopped(signum: int, _: FrameType | None) -> None:
    raise Stopped(signum)


@contextmanager
def deaf() -> Iterator[None]:
    """Ignores both signals while the body tidies up after one of them."""
    before = install(dict.fromkeys((signal.SIGINT, signal.SIGTERM), signal.SIG_IGN))
    try:
        yield
    finally:
        install(before)


class StopRequest:
    """Inside a `with` block, a first signal calls `on_request`, to save and stop; a second one raises `Stopped`.

    So does the first while `worthwhile()` is false: there is nothing to save.
    """

    def __init__(self, *, worthwhile: Callable[[], bool], on_request: Callable[[], None]) -> None:
        self._worthwhile, self._on_request = worthwhile, on_request
        self.signum: int | None = None  # of the request

    def __enter__(self) -> Self:
        self._before = install(dict.fromkeys((signal.SIGINT, signal.SIGTERM), self._handle))
        return self

    def __exit__(self, *_: object) -> None:
        install(self._before)

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if self.signum is not None:
            raise Stopped(signum, "stopped at once, without a checkpoint")
        if not self._worthwhile():
            raise Stopped(signum, "stopped before the first step")
        self.signum = signum
        self._on_request()
        logger.info("saving a checkpoint after this step, then stopping (again: stop at once)")


def run_apart(action: Callable[[], Value]) -> Value:
    """Runs an action in a thread of its own, while the main thread handles signals; returns or raises what it does.

    Ray Train replaces the handler of SIGINT where it runs in the main thread. The thread is a daemon: it does not keep
    a process that has been stopped.
    """
    outcome = _Outcome[Value]()

    def run() -> None:
        with outcome:
            outcome.set_result(action())

    threading.Thread(target=run, name="apart", daemon=True).start()
    return outcome.result()


class _Outcome(Future[Value]):
    """A future that takes what its `with` block raises."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        if error is not None:
            self.set_exception(error)
        return True
