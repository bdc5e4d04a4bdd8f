"""Progress on stderr: a bar for commands that know how much there is to do, lines where there is no terminal."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from blip3o import log
from blip3o.data.features.files import FeatureFooter
from blip3o.evaluate.progress import Advance, progress_bar

logger = logging.getLogger(__name__)

EncodedShard = tuple[int, FeatureFooter]


@contextmanager
def bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """The progress of work whose size is known once it has begun, driven by (done, total)."""
    with ExitStack() as shown:
        advances: list[Advance] = []
        before = 0

        def update(done: int, total: int) -> None:
            nonlocal before
            if not advances:
                advances.append(shown.enter_context(progress_bar(label, total)))
            advances[0](done - before)
            before = done

        yield update


def show_shards(
    shards: Iterable[EncodedShard], label: str, total: int, *, every: float | None = None
) -> Iterator[EncodedShard]:
    """Passes encoded shards on, and shows how many of `total` are done and the images per second since the start.

    On a terminal that is a bar; elsewhere, as in the log of a submitted job, a line at most every `every` seconds (as
    `log.Pace` if omitted).
    """
    console = log.console()
    figures = (MofNCompleteColumn(), TextColumn("shards, {task.fields[rate]:.1f} images/s"), TimeRemainingColumn())
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(14),
        *figures,
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    start, pace = time.monotonic(), log.Pace(every)
    images = 0
    with progress:
        task = progress.add_task(label, total=total, rate=0.0)
        for count, (shard, footer) in enumerate(shards, 1):
            images += footer.encoded + footer.absent
            rate = images / max(time.monotonic() - start, 1e-9)
            progress.update(task, completed=count, rate=rate)
            if progress.disable and pace.due(also=count == total):
                logger.info("%s: %d of %d shards, %.1f images/s", label, count, total, rate)
            yield shard, footer
