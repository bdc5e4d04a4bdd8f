"""Live progress across processes: rank 0 reports to a small actor, and the driver shows it as a progress bar."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from blip3o.config.recipe import Recipe
from blip3o.runs.rows import MFU, PADDING, with_rates
from blip3o.train.callbacks import Callback, StepRecord

BOARD = "blip3o-progress"
POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run to show, and its number of steps."""

    run: str
    steps: int


@contextmanager
def show_progress(runs: Sequence[TrackedRun]) -> Iterator[None]:
    """Shows the progress of runs on stderr, with a bar for each, while the body runs."""
    board = progress_board()
    stop = threading.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    progress = Progress(
        *columns,
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    tasks = {it.run: progress.add_task(it.run, total=it.steps, loss="waiting", start=False) for it in runs}
    printed = {it.run: 0 for it in runs}  # quarters of each run that the log already shows

    def poll() -> None:
        rows = ray.get(board.latest.remote(list(tasks)))
        for it in runs:
            row = rows.get(it.run)
            if row is None:
                continue
            progress.start_task(tasks[it.run])
            progress.update(tasks[it.run], completed=row["step"], loss=figures(row))
            quarter = 4 * row["step"] // it.steps
            if quarter > printed[it.run] and not progress.console.is_terminal:  # a log file cannot show bars
                printed[it.run] = quarter
                progress.console.print(f"   {it.run}: {row['step']}/{it.steps} steps, {figures(row)}")

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            poll()

    thread = threading.Thread(target=watch, daemon=True)
    with progress:
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        poll()


def figures(row: Mapping[str, Any]) -> str:
    """The loss of a report, and MFU and padding if it has them, as text."""
    shares = {"MFU": MFU, "padding": PADDING}
    known = [f"{title} {row[name]:.1%}" for title, name in shares.items() if name in row]
    return ", ".join([f"loss {row['loss']:.4f}", *known])


class ProgressReporter(Callback):
    """Reports step and loss of rank 0 to the board every `log.every` steps, with MFU and padding if they are known.

    `peak_flops` as for `MetricsRecorder`.
    """

    def __init__(self, recipe: Recipe, *, peak_flops: float | None = None) -> None:
        self._recipe, self._peak_flops, self._board = recipe, peak_flops, progress_board()

    def after_step(self, done: int, record: StepRecord) -> None:
        """Does not wait for the actor."""
        if done == self._recipe.optim.steps or done % self._recipe.log.every == 0:
            row = with_rates(record.row(), peak_flops=self._peak_flops)
            shares = {name: row[name] for name in (MFU, PADDING) if name in row}
            self._board.update.remote(self._recipe.run.name, {"step": done, "loss": record.loss, **shares})


def progress_board() -> Any:  # noqa: ANN401 - an actor handle
    """The cluster's progress board, which is created if there is none."""
    return ray.remote(num_cpus=0)(ProgressBoard).options(name=BOARD, get_if_exists=True).remote()


class ProgressBoard:
    """The latest report of each run: steps done, loss, and shares."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}

    def update(self, run: str, row: dict[str, Any]) -> None:
        """Replaces the report of a run."""
        self._rows[run] = row

    def latest(self, runs: list[str]) -> dict[str, dict[str, Any]]:
        """The reports of those of the runs that have sent one."""
        return {run: self._rows[run] for run in runs if run in self._rows}
