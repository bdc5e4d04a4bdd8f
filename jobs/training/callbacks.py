"""Callbacks that need Ray: Prometheus gauges, and a checkpoint when a node is about to be preempted."""

import re

import ray.train
from ray.util.metrics import Gauge

from blip3o.config.recipe import Recipe
from blip3o.runs.rows import with_rates
from blip3o.train.callbacks import Callback, StepRecord


class GaugeExporter(Callback):
    """Exports each column of a metrics row as a gauge `blip3o_train_COLUMN`, tagged with the run, to Prometheus.

    Runs on rank 0 and updates the gauges every `log.every` steps. `peak_flops` as for `MetricsRecorder`.
    """

    def __init__(self, recipe: Recipe, *, peak_flops: float | None) -> None:
        self._recipe, self._peak_flops = recipe, peak_flops
        self._gauges: dict[str, Gauge] = {}

    def after_step(self, done: int, record: StepRecord) -> None:
        """Sets the gauges to the values of this step."""
        if done != self._recipe.optim.steps and done % self._recipe.log.every:
            return
        for column, value in with_rates(record.row(), peak_flops=self._peak_flops).items():
            if column not in self._gauges:
                name = "blip3o_train_" + re.sub(r"\W", "_", column)
                self._gauges[column] = Gauge(name, description=f"{column} of a training step", tag_keys=("run",))
            self._gauges[column].set(value, tags={"run": self._recipe.run.name})


class PreemptionNotice(Callback):
    """Requests one checkpoint when Ray announces that a node will be preempted.

    All ranks ask Ray at the same steps and get the same answer, so they agree on the checkpoint.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._every = recipe.checkpoint.preemption_check_every
        self._noticed = False

    def wants_checkpoint(self, done: int) -> bool:
        """Checks every `checkpoint.preemption_check_every` steps until the first notice."""
        if self._noticed or self._every == 0 or done % self._every:
            return False
        self._noticed = ray.train.get_preemption_info() is not None
        return self._noticed
