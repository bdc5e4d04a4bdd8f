"""Callbacks that need Ray: Prometheus gauges, a checkpoint before a preemption, and pruning after each checkpoint."""

import posixpath
import re
from typing import Any

import ray.train
from ray.train import Checkpoint, UserCallback
from ray.util.metrics import Gauge

from blip3o.config.recipe import Recipe
from blip3o.runs.checkpoints import parse_checkpoint_name
from blip3o.runs.rows import with_rates
from blip3o.train.callbacks import Callback, StepRecord
from blip3o.train.checkpoint.store import prune
from jobs.training.plan import FitPlan


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


class CheckpointPruner(UserCallback):
    """Prunes a stage's checkpoints once a new one is committed. Runs in Ray Train's controller.

    Not earlier: until then the new one does not count, and what it replaces is what a killed run would resume from.
    """

    def __init__(self, plan: FitPlan) -> None:
        self._plan = plan

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:  # noqa: ANN401 - as Ray calls it
        """Ray Train calls it after it has written the snapshot that names the checkpoint."""
        if checkpoint is None:
            return
        run, _ = parse_checkpoint_name(posixpath.basename(checkpoint.path))
        prune(next(recipe for recipe in self._plan.pipeline().stages if recipe.run.name == run), self._plan.name)
