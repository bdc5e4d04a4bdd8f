"""What rank 0 says of each step while a stage trains: to the sinks, to Ray's metrics, and to the board.

Writing is a thread's work, so a slow store delays no step. Only a checkpoint waits for the rows before it: what is
committed has its metrics.
"""

import json
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from ray.util.metrics import Gauge

from blip3o import device as devices
from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.runs.paths import recipe_uri
from blip3o.runs.rows import Row, with_rates
from blip3o.train.loop import StepRecord
from blip3o.train.metrics.trackers import open_trackers
from jobs.training.progress import board


class Recorder:
    """`peak_flops` are operations a second of all workers together, None where they are not known."""

    def __init__(self, recipe: Recipe, *, peak_flops: float | None) -> None:
        """Raises `ConfigError` if one of `log.trackers` cannot be used here."""
        self._recipe, self._peak_flops = recipe, peak_flops
        place = recipe_uri(recipe.run.storage, recipe.run.name)
        storage.write_bytes(place, json.dumps(recipe.model_dump(mode="json"), indent=1).encode())
        self._sinks = list(open_trackers(recipe))
        self._gauges = Gauges(recipe.run.name) if "ray" in recipe.log.trackers else None
        self._board: Any = board()
        self._rows: list[Row] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sinks")
        self._writing: list[Future[None]] = []

    def add(self, done: int, record: StepRecord) -> None:
        """Keeps the row of a step after which `done` are finished. Raises what a sink has raised since."""
        log = self._recipe.log
        row = with_rates({**record.row(), "time": time.time()}, peak_flops=self._peak_flops)
        self._rows.append(row)
        if done == self._recipe.optim.steps or done % log.every == 0:
            self._board.tell.remote(self._recipe.run.name, {"step": done, "loss": record.loss})
            if self._gauges is not None:
                self._gauges.set(row)
        if log.flush is not None and done % log.flush == 0:
            self.flush()

    def flush(self) -> None:
        """Has what was added so far written."""
        self._raise_failures(wait=False)
        rows, self._rows = self._rows, []
        if rows:
            self._writing += [self._thread.submit(sink.write, rows) for sink in self._sinks]

    def settle(self) -> None:
        """Waits until all that was flushed is written. Raises what a sink has raised."""
        self._raise_failures(wait=True)

    def close(self) -> None:
        """Writes the rest and closes the sinks."""
        self.flush()
        self.settle()
        for sink in self._sinks:
            sink.close()
        self._thread.shutdown()

    def _raise_failures(self, *, wait: bool) -> None:
        going = [future for future in self._writing if not (wait or future.done())]
        ended = [future for future in self._writing if wait or future.done()]
        self._writing = going
        for future in ended:
            future.result()


class Gauges:
    """Each column of a row as a gauge `blip3o_train_COLUMN`, tagged with the run; Ray offers them to Prometheus."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def set(self, row: Row) -> None:
        """Shows the values of this row."""
        for column, value in row.items():
            if column not in self._gauges:
                name = "blip3o_train_" + re.sub(r"\W", "_", column)
                self._gauges[column] = Gauge(name, description=f"{column} of a training step", tag_keys=("run",))
            self._gauges[column].set(value, tags={"run": self._run})


def peak_flops(recipe: Recipe, device: torch.device, *, workers: int) -> float | None:
    """Operations a second that all workers can do at most: by the recipe's word, or by what is known of the device."""
    told = recipe.parallel.peak_tflops
    peak = devices.peak_flops(device, recipe.parallel.precision) if told is None else told * 1e12
    return None if peak is None else workers * peak
