"""Live progress across processes: rank 0 reports to a small actor, the driver shows it as a rich bar."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from blip3o.config.recipe import Recipe
from blip3o.train.callbacks import Callback, StepRecord

BOARD = "blip3o-progress"
POLL_SECONDS = 0.5


class Board:
    """The newest word of each run: steps done and loss."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}

    def tell(self, run: str, row: dict[str, Any]) -> None:
        """Replaces what is known of a run."""
        self._rows[run] = row

    def ask(self, runs: list[str]) -> dict[str, dict[str, Any]]:
        """What is known of those runs that have said something."""
        return {run: self._rows[run] for run in runs if run in self._rows}


def board() -> Any:  # noqa: ANN401 - an actor handle
    """The cluster's board; made if there is none."""
    return ray.remote(num_cpus=0)(Board).options(name=BOARD, get_if_exists=True).remote()


class ProgressReporter(Callback):
    """Reports step and loss to the board every `log.every` steps; rank 0's."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._board = recipe, board()

    def after_step(self, done: int, record: StepRecord) -> None:
        """Does not wait for the actor."""
        if done == self._recipe.optim.steps or done % self._recipe.log.every == 0:
            self._board.tell.remote(self._recipe.run.name, {"step": done, "loss": record.loss})


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A run to show, and its steps."""

    run: str
    total: int


@contextmanager
def shown(runs: Sequence[Shown]) -> Iterator[None]:
    """Shows the progress of runs on stderr, a bar each, while the body runs."""
    handle = board()
    stop = threading.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    progress = Progress(
        *columns,
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    tasks = {it.run: progress.add_task(it.run, total=it.total, loss="waiting", start=False) for it in runs}
    said = {it.run: 0 for it in runs}

    def poll() -> None:
        rows = ray.get(handle.ask.remote(list(tasks)))
        for it in runs:
            row = rows.get(it.run)
            if row is None:
                continue
            progress.start_task(tasks[it.run])
            progress.update(tasks[it.run], completed=row["step"], loss=f"loss {row['loss']:.4f}")
            quarter = 4 * row["step"] // it.total
            if quarter > said[it.run] and not progress.console.is_terminal:  # a log shows no bars
                said[it.run] = quarter
                progress.console.print(f"   {it.run}: {row['step']}/{it.total} steps, loss {row['loss']:.4f}")

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
