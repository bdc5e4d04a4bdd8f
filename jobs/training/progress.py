"""Live progress across processes: rank 0 reports to a small actor, and the driver shows what it says.

On a terminal that is a line for each stage, in place. Elsewhere, as in a log file, it is a line for each phase of the
start (workers, weights, first batch), one every `log.every` steps, and at least one a minute (`log.Pace`). The actor
also carries the other way: it informs rank 0 that the user wants to stop.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from blip3o import log
from blip3o.config.recipe import Recipe
from blip3o.runs.rows import MFU, with_rates
from blip3o.train.callbacks import Callback, StepRecord

logger = logging.getLogger(__name__)

BOARD = "blip3o-progress"
POLL_SECONDS = 0.25
KEPT = 10_000  # events that nobody has taken yet: a driver that hangs must not fill the memory
BAR = 14  # characters, at most
REPORT_SECONDS = 1.0  # between reports of steps: as often as a view can change

# Of a `run`: either a `phase`, or a `step` with `loss`, `speed`, maybe `mfu`, and `due` if the recipe wants its line.
Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run to show: its number of steps, and samples in each."""

    run: str
    steps: int
    samples: int


@contextmanager
def show_progress(runs: Sequence[TrackedRun]) -> Iterator["View"]:
    """Shows the progress of runs on stderr while the body runs, and passes the wish to stop on to the workers."""
    board = progress_board()
    ray.get(board.clear.remote())
    view, ended = View(runs), threading.Event()

    def poll() -> None:
        if view.stop_requested:
            board.stop.remote()
        for event in ray.get(board.take.remote()):
            view.show(event)

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            poll()

    thread = threading.Thread(target=watch, daemon=True)
    with view.live:
        thread.start()
        try:
            yield view
        finally:
            ended.set()
            thread.join()
        poll()


class View:
    """What the user sees of the runs of a fit."""

    def __init__(self, runs: Sequence[TrackedRun], *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds. Raises `ConfigError` as `log.Pace`."""
        self.stepped = False  # whether any step was made since the view began
        self.stop_requested = False
        self._runs = {it.run: it for it in runs}
        self._clock, self._began, self._pace = clock, clock(), log.Pace(clock=clock)
        console = log.console()
        # Where columns are few, the bar gives way.
        bar = BarColumn(None, table_column=Column(max_width=BAR))
        columns = (TextColumn("{task.description}"), bar, MofNCompleteColumn(table_column=Column(no_wrap=True)))
        # Nothing is redirected: what others write goes to the log, and our own messages use the same console.
        self.live = Progress(
            *columns,
            TextColumn("{task.fields[state]}"),
            console=console,
            disable=not console.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._tasks = {it.run: self.live.add_task(it.run, total=it.steps, state="") for it in runs}

    def request_stop(self) -> None:
        """The workers are to save a checkpoint and stop. Safe in a handler of signals: it calls nothing."""
        self.stop_requested = True

    def show(self, event: Event) -> None:
        """Shows a phase, or a step with its figures; off a terminal, a step that is due by number or by time."""
        run = self._runs.get(event["run"])
        if run is None:
            return
        state = event.get("phase") or figures(event, run)
        if "step" in event:
            self.stepped = True
            self.live.update(self._tasks[run.run], completed=event["step"], state=state)
            state = f"step {event['step']}/{run.steps}  {state}"
        else:
            self.live.update(self._tasks[run.run], state=state)
            state = f"{state} ({self._clock() - self._began:.0f} s)"
        if self.live.disable and self._pace.due(also=event.get("due", "phase" in event)):
            logger.info("%s: %s", run.run, state)


def figures(event: Event, run: TrackedRun) -> str:
    """Loss, speed and time left of a step as text, and MFU if it is known."""
    speed = event["speed"]
    left = timedelta(seconds=round((run.steps - event["step"]) * run.samples / speed))
    share = [f"MFU {event[MFU]:.1%}"] if MFU in event else []
    pace = f"{speed:.0f}/s" if speed >= 10 else f"{speed:.2g}/s"
    return "  ".join([f"loss {event['loss']:.4f}", *share, pace, f"{left} left"])


class ProgressReporter(Callback):
    """Reports, from rank 0: each phase of the start, and steps: the first, the last, every `log.every`, one a second.

    It also asks whether the user wants to stop. `peak_flops` as for `MetricsRecorder`; `clock` returns seconds.
    """

    def __init__(
        self, recipe: Recipe, *, peak_flops: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._recipe, self._peak_flops, self._board = recipe, peak_flops, progress_board()
        self._pace = log.Pace(REPORT_SECONDS, clock=clock)
        self._first: int | None = None
        self._answer: Any = None  # of the actor, while it is awaited

    def report_phase(self, phase: str) -> None:
        """Does not wait for the actor."""
        self._board.report.remote({"run": self._recipe.run.name, "phase": phase})

    def on_start(self, step: int) -> None:
        """The stream has to deliver now."""
        self._first = step + 1
        self.report_phase("waiting for the first batch")

    def after_step(self, done: int, record: StepRecord) -> None:
        """Does not wait for the actor."""
        due = done in (self._first, self._recipe.optim.steps) or done % self._recipe.log.every == 0
        if self._pace.due(also=due):
            row = with_rates(record.row(), peak_flops=self._peak_flops)
            shares = {name: row[name] for name in (MFU,) if name in row}
            speed = row["samples_per_second"]
            event = {"run": self._recipe.run.name, "step": done, "loss": record.loss, "speed": speed, "due": due}
            self._board.report.remote(event | shares)

    def wants_stop(self) -> bool:
        """Asks the actor, and never waits for its answer: that is read in the next step, or once it is there."""
        asked = self._answer
        if asked is not None and not ray.wait([asked], timeout=0)[0]:
            return False
        self._answer = self._board.stopping.remote()  # at once, or the answer of a long step would be one step older
        return asked is not None and ray.get(asked)


def progress_board() -> Any:  # noqa: ANN401 - an actor handle
    """The cluster's progress board, which is created if there is none.

    If its process or node is lost, Ray starts it again, empty: training must not end because of it.
    """
    lasting = {"max_restarts": -1, "max_task_retries": -1}
    return ray.remote(num_cpus=0)(ProgressBoard).options(name=BOARD, get_if_exists=True, **lasting).remote()


class ProgressBoard:
    """What rank 0 has reported and the driver has not taken yet, and whether the user wants to stop."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._stop = False

    def clear(self) -> None:
        """A new fit begins."""
        self._events.clear()
        self._stop = False

    def report(self, event: Event) -> None:
        """Adds an event."""
        self._events.append(event)

    def take(self) -> list[Event]:
        """Returns the events in their order, and forgets them."""
        taken = list(self._events)
        self._events.clear()
        return taken

    def stop(self) -> None:
        """The user wants to stop."""
        self._stop = True

    def stopping(self) -> bool:
        """Whether the user wants to stop."""
        return self._stop
