"""The progress bar of an evaluation, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]  # called with the number of pieces of work that have just been finished


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Advance]:
    """A bar of `total` pieces of work that the body advances."""
    # Imported here: only the process that shows a bar needs rich, not the workers.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)
