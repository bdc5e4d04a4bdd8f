"""Exports a training run to Prometheus through Ray, which adds `ray_` to the name of each metric.

The columns of a step's row (`blip3o.runs.rows`) are gauges, `blip3o_train_COLUMN`. They show the newest step only, so
what is averaged or summed over time is counted as well, and so is what happens between the steps: `METRICS`.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ray.util.metrics import Counter, Gauge

from blip3o import log, storage
from blip3o.config.recipe import Recipe
from blip3o.errors import StorageError
from blip3o.runs.paths import attempts_folder, ledger_uri
from blip3o.runs.quarantine import read_quarantine
from blip3o.runs.rows import TOKENS, with_rates
from blip3o.train.callbacks import Callback, StepRecord

logger = logging.getLogger(__name__)

PREFIX = "blip3o_train_"
EXPORT_SECONDS = 5.0  # between updates; Ray passes them on every 10 s


@dataclass(frozen=True)
class Spec:
    """A metric: its kind, and its meaning as Prometheus shows it."""

    kind: Literal["counter", "gauge"]
    help: str


METRICS: Mapping[str, Spec] = {
    "steps_total": Spec("counter", "Optimizer steps that were made, those that were repeated after a restart too."),
    "samples_total": Spec("counter", "Samples of these steps, over all workers."),
    "tokens_total": Spec("counter", "Tokens of these steps without padding, over all workers."),
    "step_seconds_total": Spec("counter", "Seconds of these steps on rank 0."),
    "data_wait_seconds_total": Spec("counter", "Those of them in which rank 0 waited for its micro-batches."),
    "checkpoint_stall_seconds_total": Spec("counter", "Seconds between steps on rank 0, most of them for checkpoints."),
    "progress": Spec("gauge", "Steps done as a share of the run's."),
    "workers": Spec("gauge", "Training workers of the current attempt."),
    "attempts": Spec("gauge", "Starts of the workers that reached a step, the current one included."),
    "rewinds": Spec("gauge", "How often the loss guard went back to a checkpoint."),
    "left_out_samples": Spec("gauge", "Samples that the run left out because they are damaged or in quarantine."),
    "left_out_share": Spec("gauge", "The same as a share of the samples in the run's data."),
    "checkpoint_seconds": Spec(
        "gauge", "From the save of rank 0's newest stored checkpoint until it was in the store."
    ),
    "checkpoint_timestamp_seconds": Spec(
        "gauge", "When that was, in seconds since 1970; before, when the run started."
    ),
}


class Exported:
    """The metrics of one run in this process, tagged with its name."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}

    def set(self, name: str, value: float) -> None:
        """Sets a gauge, which may also be a column of a step's row."""
        if name not in self._gauges:
            spec = METRICS.get(name)
            description = spec.help if spec else f"{name} of a training step"
            self._gauges[name] = Gauge(PREFIX + re.sub(r"\W", "_", name), description=description, tag_keys=("run",))
        self._gauges[name].set(value, tags=self._tags)

    def add(self, name: str, value: float) -> None:
        """Advances a counter of `METRICS`; Ray refuses to add nothing."""
        if name not in self._counters:
            self._counters[name] = Counter(PREFIX + name, description=METRICS[name].help, tag_keys=("run",))
        if value > 0:
            self._counters[name].inc(value, tags=self._tags)

    def stored(self, seconds: float) -> None:
        """A checkpoint is in the store, `seconds` after its save began. Any thread may call it."""
        self.set("checkpoint_seconds", seconds)
        self.set("checkpoint_timestamp_seconds", time.time())


class MetricsExporter(Callback):
    """Exports the steps of a run from rank 0: the last one, each `log.every`th, and else one every few seconds.

    `peak_flops` as for `MetricsRecorder`; `samples` is the number of samples in the data; `clock` returns seconds.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        peak_flops: float | None,
        workers: int,
        samples: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recipe, self._peak_flops, self._samples = recipe, peak_flops, samples
        self._exported = Exported(recipe.run.name)
        self._exported.set("workers", workers)
        self._exported.set("checkpoint_timestamp_seconds", time.time())
        self._pace = log.Pace(EXPORT_SECONDS, clock=clock)
        self._sums: dict[str, float] = {}

    def on_start(self, step: int) -> None:
        """Counts what earlier attempts left in the store."""
        self._exported.set("progress", step / self._recipe.optim.steps)
        self._in_background(self._count_attempts)
        self._in_background(self._count_left_out)

    def after_step(self, done: int, record: StepRecord) -> None:
        """Counts the step, and exports if it is time."""
        for name, value in _counted(record).items():
            self._sums[name] = self._sums.get(name, 0) + value
        due = done == self._recipe.optim.steps or done % self._recipe.log.every == 0
        if self._pace.due(also=due):
            for column, value in with_rates(record.row(), peak_flops=self._peak_flops).items():
                self._exported.set(column, value)
            for name, value in self._sums.items():
                self._exported.add(name, value)
            self._sums.clear()
            self._exported.set("progress", done / self._recipe.optim.steps)

    def on_checkpoint(self, done: int, record: StepRecord) -> None:
        """Counts again what was left out."""
        self._in_background(self._count_left_out)

    def _in_background(self, count: Callable[[], None]) -> None:
        """No step waits for the store, and none fails because it does not answer."""

        def run() -> None:
            try:
                count()
            except StorageError as error:
                logger.warning("metrics of run '%s' are not up to date: %s", self._recipe.run.name, error)

        threading.Thread(target=run, daemon=True, name="exporter").start()

    def _count_attempts(self) -> None:
        run = self._recipe.run
        before = storage.list_files(attempts_folder(run.storage, run.name), suffix=".json")
        self._exported.set("attempts", len(before) + 1)
        self._exported.set("rewinds", len(read_quarantine(self._recipe).entries))

    def _count_left_out(self) -> None:
        run = self._recipe.run
        entries = storage.list_files(ledger_uri(run.storage, run.name), suffix=".json")  # one file each
        self._exported.set("left_out_samples", len(entries))
        self._exported.set("left_out_share", len(entries) / self._samples)


def _counted(record: StepRecord) -> dict[str, float]:
    """What a step adds to the counters."""
    return {
        "steps_total": 1,
        "samples_total": record.samples,
        "tokens_total": record.work.get(TOKENS, 0),
        "step_seconds_total": record.seconds,
        "data_wait_seconds_total": record.data_wait,
        "checkpoint_stall_seconds_total": record.checkpoint_stall,
    }
