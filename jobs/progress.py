"""Live progress across processes: workers tell a small actor, the driver shows it as a rich bar."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

BOARD = "blip3o-progress"
POLL_SECONDS = 0.5


class Board:
    """The newest word of each run: steps done and loss."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}

    def tell(self, run: str, row: dict[str, Any]) -> None:
        """Replaces what is known of a run."""
        self._rows[run] = row

    def ask(self, run: str) -> dict[str, Any] | None:
        """What is known of a run."""
        return self._rows.get(run)


def board() -> Any:  # noqa: ANN401 - an actor handle
    """The cluster's board; made if there is none."""
    return ray.remote(num_cpus=0)(Board).options(name=BOARD, get_if_exists=True).remote()


@contextmanager
def shown(run: str, *, label: str, total: int) -> Iterator[None]:
    """Shows the progress of a run on stderr while the body runs."""
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
    task = progress.add_task(label, total=total, loss="starting workers")

    def poll() -> None:
        while not stop.wait(POLL_SECONDS):
            row = ray.get(handle.ask.remote(run))
            if row:
                progress.update(task, completed=row["step"], loss=f"loss {row['loss']:.4f}")

    thread = threading.Thread(target=poll, daemon=True)
    with progress:
        thread.start()
        try:
            yield
            progress.update(task, completed=total)
        finally:
            stop.set()
            thread.join()
