"""Records a metrics row for every step and passes the rows to the run's trackers.

A background thread writes them, so a slow store does not delay a step. Only a checkpoint waits for the rows before it:
a committed checkpoint always has its metrics.
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
    """Collects the row of each step, on rank 0, and writes the rows in groups, one for each interval.

    `peak_flops` is the peak of all workers together in operations per second; None if it is not known.
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
        """Collects the row of the step. Raises the error of a tracker that has failed since."""
        self._rows.append(with_rates({**record.row(), "time": time.time()}, peak_flops=self._peak_flops))
        if self._flush_every is not None and done % self._flush_every == 0:
            self.flush()

    def on_checkpoint(self, done: int, record: StepRecord) -> None:
        """Waits until all rows so far are written. Raises the error of a tracker that failed."""
        self.flush()
        self.wait_written()

    def on_end(self) -> None:
        """Writes the remaining rows and closes the trackers."""
        self.flush()
        self.wait_written()
        for tracker in self._trackers:
            tracker.close()
        self._thread.shutdown()

    def flush(self) -> None:
        """Passes the collected rows to the background thread."""
        self._raise_failures(wait=False)
        rows, self._rows = self._rows, []
        if rows:
            self._writing += [self._thread.submit(tracker.write, rows) for tracker in self._trackers]

    def wait_written(self) -> None:
        """Waits until all flushed rows are written. Raises the error of a tracker that failed."""
        self._raise_failures(wait=True)

    def _raise_failures(self, *, wait: bool) -> None:
        running = [future for future in self._writing if not (wait or future.done())]
        finished = [future for future in self._writing if wait or future.done()]
        self._writing = running
        for future in finished:
            future.result()


def peak_flops(recipe: Recipe, device: torch.device, *, workers: int) -> float | None:
    """Peak operations per second of all workers: `parallel.peak_tflops`, or the known peak of the device, else None."""
    given = recipe.parallel.peak_tflops
    peak = devices.peak_flops(device, recipe.parallel.precision) if given is None else given * 1e12
    return None if peak is None else workers * peak
