"""Callbacks that need Ray: a checkpoint before a preemption, and pruning after each checkpoint."""

import posixpath
from typing import Any

import ray.train
from ray.train import Checkpoint, UserCallback

from blip3o.config.recipe import Recipe
from blip3o.runs.checkpoints import parse_checkpoint_name
from blip3o.train.callbacks import Callback
from blip3o.train.checkpoint.store import prune
from jobs.training.plan import FitPlan


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
