"""Logging and the console. Library code uses `logger = logging.getLogger(__name__)`; entry points call `configure`.

What the user is told goes to the terminal: messages of this project, and errors of anyone. What libraries say besides
(warnings, notices of other processes) can be diverted to a file, so that it does not stand between the lines.
"""

import io
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from blip3o import settings

if TYPE_CHECKING:
    from rich.console import Console

# `python -m jobs.index` runs its module under the name `__main__`.
OURS = ("__main__", "blip3o", "jobs", "serve", "cluster")
RAYS_THREAD = "ray_listen_error_messages"  # prints what Ray's other processes report to the stdout of a driver
_CLOCK = "%H:%M:%S"
_FULL = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt=_CLOCK)
_PLAIN = logging.Formatter("%(asctime)s %(message)s", datefmt=_CLOCK)


class Pace:
    """Says whether it is time for the next line of progress in a log: `seconds` after the line before it."""

    def __init__(self, seconds: float | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`seconds` are `BLIP3O_LOG_SECONDS`, 60 by default, if omitted. Raises `ConfigError` if that is no number."""
        self.seconds = settings.number("BLIP3O_LOG_SECONDS", 60) if seconds is None else seconds
        self._clock = clock
        self._last = clock()

    def due(self, *, also: bool = False) -> bool:
        """Whether a line is to be written now: by time, or `also` for another reason. The time runs from there."""
        now = self._clock()
        if not also and now - self._last < self.seconds:
            return False
        self._last = now
        return True


def configure(level: str = "INFO") -> None:
    """Logs to stderr as `HH:MM:SS message`, with level and name before it unless it is information of this project.

    Other libraries log from WARNING on. Also makes stdout and stderr escape characters that their encoding cannot
    represent (a reply in another script, a file name that is not UTF-8).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    root = logging.getLogger()
    root.handlers[:] = [_terminal_handler()]
    root.setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(level)


@dataclass
class _Diversion:
    """Where stderr went before it was diverted, and what has to be undone."""

    file: TextIO
    stderr: TextIO
    stdout: TextIO
    shown: tuple[str, ...]  # loggers of ours whose information the terminal keeps
    handlers: list[tuple["logging.StreamHandler[TextIO]", TextIO]] = field(default_factory=list)
    added: list[tuple[logging.Logger, logging.Handler]] = field(default_factory=list)


_diversions: list[_Diversion] = []  # at most one
_sessions: list[str] = []  # at most one


@contextmanager
def session() -> Iterator[None]:
    """The run of an entry point: only in here may stderr be diverted, and it ends with it. Others keep their stderr."""
    _sessions.append("open")
    try:
        yield
    finally:
        _sessions.clear()
        _restore()


def terminal() -> TextIO:
    """The stream of what the user is told: stderr, also while it is diverted."""
    return _diversions[0].stderr if _diversions else sys.stderr


def console() -> "Console":
    """The console on `terminal()`: one for all, so that lines and a live view do not overwrite each other."""
    return _console(terminal())


@lru_cache(maxsize=1)
def _console(stream: TextIO) -> "Console":
    from rich.console import Console

    return Console(file=stream, highlight=False, emoji=False)


def diverted() -> Path | None:
    """The file to which stderr is diverted, if it is."""
    return Path(_diversions[0].file.name) if _diversions else None


def divert(path: Path, *, shown: tuple[str, ...] = OURS) -> None:
    """From now on, what is written to stderr, what Ray prints and all log records are appended to a file.

    The terminal keeps the information of the loggers that are `shown` with those below them, this project's warnings,
    and everyone's errors. Does nothing outside a `session`, or while another file is in use.
    """
    if _diversions or not _sessions:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
    diversion = _Diversion(file=file, stderr=sys.stderr, stdout=sys.stdout, shown=shown)
    _diversions.append(diversion)
    sys.stderr = file
    if sys.stdout is not None:  # closed by the shell
        sys.stdout = cast("TextIO", _WithoutRay(sys.stdout, file))
    everything = logging.StreamHandler(file)
    everything.setFormatter(_FULL)
    _add(diversion, logging.getLogger(), everything)
    for logger, handler in _writing_to(diversion.stderr):
        diversion.handlers.append((handler, diversion.stderr))
        handler.setStream(file)
        if not logger.propagate:  # its errors would not reach the terminal
            _add(diversion, logger, _terminal_handler())


def _restore() -> None:
    for diversion in _diversions:
        sys.stderr, sys.stdout = diversion.stderr, diversion.stdout
        for handler, stream in diversion.handlers:
            handler.setStream(stream)
        for logger, added in diversion.added:
            logger.removeHandler(added)
        diversion.file.close()
    _diversions.clear()


def _add(diversion: _Diversion, logger: logging.Logger, handler: logging.Handler) -> None:
    logger.addHandler(handler)
    diversion.added.append((logger, handler))


def _writing_to(stream: TextIO) -> Iterator[tuple[logging.Logger, "logging.StreamHandler[TextIO]"]]:
    """The handlers of libraries that hold a stream. A handler of Ray's keeps the one from its import."""
    loggers = [it for it in logging.root.manager.loggerDict.values() if isinstance(it, logging.Logger)]
    for logger in loggers:
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                yield logger, handler


class _WithoutRay:
    """A stdout without Ray's notices, which would stand among the results of a command: they go to a file."""

    def __init__(self, stdout: TextIO, file: TextIO) -> None:
        self._stdout, self._file = stdout, file

    def write(self, text: str) -> int:
        """Writes text to one of them."""
        return (self._file if threading.current_thread().name == RAYS_THREAD else self._stdout).write(text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever stdout has
        return getattr(self._stdout, name)


class _Terminal:
    """`terminal()` as a stream for handlers: it writes above a live view, if one is shown there."""

    def write(self, text: str) -> None:
        """Writes text as it is."""
        if "rich.console" in sys.modules:
            console().print(text, end="", markup=False, soft_wrap=True)
        else:  # workers show nothing live, and need not import rich
            terminal().write(text)

    def flush(self) -> None:
        """Nothing stays behind."""
        terminal().flush()


class _Brief(logging.Formatter):
    """Leaves out level and name where they say nothing, so that a line has room within 80 columns."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return (_PLAIN if _is_ours(record) and record.levelno == logging.INFO else _FULL).format(record)


def _terminal_handler() -> logging.Handler:
    handler = logging.StreamHandler(_Terminal())
    handler.setFormatter(_Brief())
    handler.addFilter(_concerns_the_user)
    return handler


def _concerns_the_user(record: logging.LogRecord) -> bool:
    """Whether a record belongs on the terminal."""
    if not _is_ours(record):
        return record.levelno >= (logging.ERROR if _diversions else logging.WARNING)
    shown = _diversions[0].shown if _diversions else OURS
    return record.levelno > logging.INFO or any(f"{record.name}.".startswith(f"{name}.") for name in shown)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in OURS
