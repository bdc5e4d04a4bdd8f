"""Progress on stderr: a bar for commands that know how much there is to do, lines where there is no terminal."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from blip3o.data.features.files import FeatureFooter

logger = logging.getLogger(__name__)

LINE_SECONDS = 30  # between lines of the log, where there is no terminal for a bar
EncodedShard = tuple[int, FeatureFooter]


@contextmanager
def bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, driven by (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def show_shards(
    shards: Iterable[EncodedShard], label: str, total: int, *, every: float = LINE_SECONDS
) -> Iterator[EncodedShard]:
    """Passes encoded shards on, and shows how many of `total` are done and the images per second since the start.

    On a terminal that is a bar; elsewhere, as in the log of a submitted job, a line at most every `every` seconds.
    """
    console = Console(stderr=True)
    figures = (MofNCompleteColumn(), TextColumn("shards, {task.fields[rate]:.1f} images/s"), TimeRemainingColumn())
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), *figures, console=console, disable=not console.is_terminal
    )
    start = last_line = time.monotonic()
    images = 0
    with progress:
        task = progress.add_task(label, total=total, rate=0.0)
        for count, (shard, footer) in enumerate(shards, 1):
            images += footer.encoded + footer.absent
            now = time.monotonic()
            rate = images / max(now - start, 1e-9)
            progress.update(task, completed=count, rate=rate)
            if progress.disable and (now - last_line >= every or count == total):
                logger.info("%s: %d of %d shards, %.1f images/s", label, count, total, rate)
                last_line = now
            yield shard, footer
