"""A background process: started in its own session, watched while it comes up, stopped together with its children.

It writes to a log file, whose last lines go into the error when it dies. On Linux it also gets SIGTERM when this
process is killed (`cluster.guard`): precisely, when the thread that called `start` ends, so start it from the main one.
Never signals a process that it did not start.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from blip3o import settings
from blip3o.errors import ServiceError

_GUARD = Path(__file__).with_name("guard.py")
_POLL_S = 0.1


class ManagedProcess:
    """One child process and its log file."""

    def __init__(self, *, name: str, log: Path) -> None:
        """`name` is what errors call the service; `log` receives its stdout and stderr, truncated at each start."""
        self.name = name
        self.log = log
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running child. Raises `ServiceError` if it has not been started."""
        if self._child is None:
            raise ServiceError(f"{self.name} is not running: start it first")
        return self._child.pid

    def start(self, command: Sequence[str], environment: Mapping[str, str], *, keep: Sequence[int] = ()) -> None:
        """Starts `command` (an absolute path and its arguments) with `environment` on top of this process's own.

        The child inherits the file descriptors in `keep`.
        """
        if self._child is not None:
            raise ServiceError(f"{self.name} is already running as process {self._child.pid}: stop it first")
        parent = str(psutil.Process().pid)
        with self.log.open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-IS", str(_GUARD), parent, *command],
                env=settings.child_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=keep,
                start_new_session=True,  # Ctrl-C in a terminal reaches us first, and we stop it in order
            )

    def wait_until(self, ready: Callable[[], bool], *, timeout_s: float) -> None:
        """Returns once `ready()` is true; otherwise stops the process and raises `ServiceError` with the log's end."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            code = self._child.poll() if self._child else None
            if code is not None or time.monotonic() > deadline:
                what = f"ended with code {code}" if code is not None else f"did not answer within {timeout_s:.0f} s"
                self.stop()
                raise ServiceError(f"{self.name} {what}; its log {self.log} ends: {self.log_tail()}")
            time.sleep(_POLL_S)

    def wait(self) -> None:
        """Waits for a signal to this process. Raises `ServiceError` with the log's end if the child ends before."""
        if self._child is not None:
            code = self._child.wait()
            raise ServiceError(f"{self.name} ended with code {code}; its log {self.log} ends: {self.log_tail()}")

    def log_tail(self, lines: int = 5) -> str:
        """The last non-empty lines of the log, joined by ` | `."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])

    def stop(self, *, grace_s: float = 10.0) -> None:
        """Ends the process and all of its descendants.

        The process itself gets SIGTERM, so that it can end its own children in order; the rest of the tree gets SIGKILL
        after `grace_s` seconds.
        """
        if self._child is None:
            return
        tree = _tree(self._child.pid)
        self._child.terminate()
        deadline = time.monotonic() + grace_s
        while any(map(_lives, tree)) and time.monotonic() < deadline:
            self._child.poll()  # reaps it
            time.sleep(_POLL_S)
        for process in filter(_lives, tree):
            process.kill()
        self._child.wait()
        self._child = None


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _lives(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie that its new parent has not reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
