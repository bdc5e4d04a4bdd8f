"""The progress of work of known size, on stderr: a bar on a terminal, and lines elsewhere, as in a log file."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from blip3o import log

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Advance = Callable[[int], None]  # called with the number of pieces of work that have just been finished


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Advance]:
    """Shows `total` pieces of work, which the body advances. Lines follow each other as `log.Pace` says."""
    # Imported here: only the process that shows a bar needs rich, not the workers.
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    console = log.console()
    bar = Progress(
        *columns, console=console, disable=not console.is_terminal, redirect_stdout=False, redirect_stderr=False
    )
    began, pace = time.monotonic(), log.Pace()
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        bar.advance(task, count)
        if bar.disable and pace.due(also=done == total):
            logger.info("%s: %d of %d in %.0f s", label, done, total, time.monotonic() - began)

    with bar:
        task = bar.add_task(label, total=total)
        yield advance


def tracked(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """Passes items on, and shows how many of `total` are done."""
    with progress_bar(label, total) as advance:
        for item in items:
            yield item
            advance(1)
