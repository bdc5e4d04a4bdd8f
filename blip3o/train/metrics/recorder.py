"""The rows of a run on their way to its trackers.

Writing is a thread's work, so a slow store delays no step. Only a checkpoint waits for the rows before it: what is
committed has its metrics.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from blip3o import device as devices
from blip3o.config.recipe import Recipe
from blip3o.runs.recipes import write_recipe
from blip3o.runs.rows import Row, with_rates
from blip3o.train.callbacks import Callback, StepRecord
from blip3o.train.metrics.trackers import open_trackers


class MetricsRecorder(Callback):
    """Keeps the row of each step, on rank 0, and has rows written in groups, one for each interval.

    `peak_flops` are operations a second of all workers together, None where they are not known.
    """

    def __init__(self, recipe: Recipe, *, peak_flops: float | None) -> None:
        """Raises `ConfigError` if one of `log.trackers` cannot be used here."""
        self._flush_every, self._peak_flops = recipe.log.flush, peak_flops
        write_recipe(recipe)
        self._trackers = list(open_trackers(recipe))
        self._rows: list[Row] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trackers")
        self._writing: list[Future[None]] = []

    def after_step(self, done: int, record: StepRecord) -> None:
        """Keeps the row of the step. Raises what a tracker has raised since."""
        self._rows.append(with_rates({**record.row(), "time": time.time()}, peak_flops=self._peak_flops))
        if self._flush_every is not None and done % self._flush_every == 0:
            self.flush()

    def on_checkpoint(self, done: int, record: StepRecord) -> None:
        """Waits until all rows so far are written. Raises what a tracker has raised."""
        self.flush()
        self.settle()

    def on_end(self) -> None:
        """Writes the rest and closes the trackers."""
        self.flush()
        self.settle()
        for tracker in self._trackers:
            tracker.close()
        self._thread.shutdown()

    def flush(self) -> None:
        """Has what was added so far written."""
        self._raise_failures(wait=False)
        rows, self._rows = self._rows, []
        if rows:
            self._writing += [self._thread.submit(tracker.write, rows) for tracker in self._trackers]

    def settle(self) -> None:
        """Waits until all that was flushed is written. Raises what a tracker has raised."""
        self._raise_failures(wait=True)

    def _raise_failures(self, *, wait: bool) -> None:
        going = [future for future in self._writing if not (wait or future.done())]
        ended = [future for future in self._writing if wait or future.done()]
        self._writing = going
        for future in ended:
            future.result()


def peak_flops(recipe: Recipe, device: torch.device, *, workers: int) -> float | None:
    """Operations a second that all workers can do at most: as the recipe says, or by what is known of the device."""
    given = recipe.parallel.peak_tflops
    peak = devices.peak_flops(device, recipe.parallel.precision) if given is None else given * 1e12
    return None if peak is None else workers * peak
