"""A watchdog over a rank that hangs: what it is doing, for how long, and where in the code.

A collective that one rank never enters blocks all others forever, without a message. Every rank reports to its watchdog
what it begins to do; a watchdog that hears nothing for too long reports that, with the stack of the thread it watches.
Of the ranks that report, the one that has begun the fewest things is the one that the others wait for.
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
from blip3o.train.callbacks import Callback

logger = logging.getLogger(__name__)

# Seconds that a hanging rank leaves the others to say where they are, before the first one's end ends them all.
GRACE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Hang:
    """What a rank has done for `seconds`: the `begun`-th thing that it began, and where it is in it."""

    doing: str
    begun: int
    seconds: float
    stack: str

    def __str__(self) -> str:
        return f"at '{self.doing}' for {self.seconds:.0f} s\n{self.stack}"


class Watchdog(Callback):
    """Watches the thread that makes it, inside a `with` block; `told` is called once, in a thread of the watch, when
    `seconds` have passed since the last `begin`.
    """

    def __init__(self, seconds: float, told: Callable[[Hang], None]) -> None:
        self._seconds, self._told = seconds, told
        self._thread = threading.get_ident()
        self._doing, self._begun, self._since = "starting", 0, time.monotonic()
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="watch")

    def __enter__(self) -> Self:
        self._since = time.monotonic()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._watcher.join()

    def begin(self, doing: str) -> None:
        """The thread begins something else."""
        self._doing, self._begun, self._since = doing, self._begun + 1, time.monotonic()

    def on_phase(self, doing: str) -> None:
        """The loop begins something else."""
        self.begin(doing)

    def _watch(self) -> None:
        left = self._seconds
        while not self._stopped.wait(left):
            passed = time.monotonic() - self._since
            left = self._seconds - passed
            if left <= 0:
                self._told(self._hang(passed))
                return

    def _hang(self, passed: float) -> Hang:
        frame = sys._current_frames().get(self._thread)
        stack = "".join(traceback.format_stack(frame)) if frame else "the thread has ended"
        return Hang(doing=self._doing, begun=self._begun, seconds=passed, stack=stack)


def end_hung_rank(recipe: Recipe, hang: Hang, *, rank: int) -> None:
    """Reports where this rank hangs, and ends its process, so that Ray Train starts all of them again."""
    logger.error("rank %d of run '%s' hangs %s", rank, recipe.run.name, hang)
    write_event(recipe, f"hang-rank-{rank}", hang.begun, f"rank {rank} hangs {hang}")
    threading.Event().wait(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
