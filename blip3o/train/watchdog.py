"""A watchdog for a rank that hangs: in which phase, for how long, and at which line of code.

A collective that one rank never enters blocks all others forever, without a message. Every rank reports each phase that
it enters to its watchdog. If no report comes for too long, the watchdog reports a hang, with the stacks of the watched
thread and of the one that reads ahead. Of the ranks that hang, the one that has entered the fewest phases is the one
that the others wait for.
"""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from blip3o.config.recipe import Recipe
from blip3o.runs.events import write_event
from blip3o.train.ahead import THREAD_NAME
from blip3o.train.callbacks import Callback

logger = logging.getLogger(__name__)

# The first rank that ends itself ends all others. It waits this long, so that they can report their own hang first.
GRACE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Hang:
    """A rank that has been in `phase` for `seconds`; `phases` counts the phases it has entered, this one included."""

    phase: str
    phases: int
    seconds: float
    stack: str

    def __str__(self) -> str:
        return f"at '{self.phase}' for {self.seconds:.0f} s\n{self.stack}"


class Watchdog(Callback):
    """Watches the thread that creates it, inside a `with` block.

    Calls `on_hang` once, in the watchdog's own thread, when no phase has been entered for `seconds`.
    """

    def __init__(self, seconds: float, on_hang: Callable[[Hang], None]) -> None:
        self._seconds, self._on_hang = seconds, on_hang
        self._thread = threading.get_ident()
        self._phase, self._phases, self._since = "starting", 0, time.monotonic()
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> Self:
        self._since = time.monotonic()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._watcher.join()

    def on_phase(self, phase: str) -> None:
        """The watched thread enters a phase: the clock restarts."""
        self._phase, self._phases, self._since = phase, self._phases + 1, time.monotonic()

    def _watch(self) -> None:
        left = self._seconds
        # Sleeps exactly until the current phase would be too long: no polling, and no cost to the watched thread.
        while not self._stopped.wait(left):
            elapsed = time.monotonic() - self._since
            left = self._seconds - elapsed
            if left <= 0:
                self._on_hang(self._hang(elapsed))
                return

    def _hang(self, elapsed: float) -> Hang:
        # If the loop waits for data, the thread that reads it shows where it hangs.
        readers = [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]
        stacks = [_stack(self._thread), *[f"{thread.name}:\n{_stack(thread.ident)}" for thread in readers]]
        return Hang(phase=self._phase, phases=self._phases, seconds=elapsed, stack="".join(stacks))


def _stack(thread: int | None) -> str:
    frame = sys._current_frames().get(thread or 0)
    return "".join(traceback.format_stack(frame)) if frame else "the thread has ended\n"


def end_hung_rank(recipe: Recipe, hang: Hang, *, rank: int) -> None:
    """Reports where this rank hangs and kills its process, so that Ray Train restarts all ranks."""
    logger.error("rank %d of run '%s' hangs %s", rank, recipe.run.name, hang)
    write_event(recipe, f"hang-rank-{rank}", hang.phases, f"rank {rank} hangs {hang}")
    threading.Event().wait(GRACE_SECONDS)
    # SIGKILL: the thread hangs in native code, which neither an exception nor SIGTERM's handler would interrupt.
    os.kill(os.getpid(), signal.SIGKILL)
