"""Which checkpoints of a run count, which are pruned, and what it falls back to if one is damaged."""

import json
import logging
from collections.abc import Iterable, Sequence

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.errors import CheckpointError
from blip3o.runs import checkpoints
from blip3o.runs.listing import validations
from blip3o.runs.paths import rejected_folder

logger = logging.getLogger(__name__)


def committed_step(recipe: Recipe, fit_name: str | None = None) -> int:
    """The step of a stage's newest committed checkpoint that is not rejected, 0 where there is none.

    Raises `CheckpointError` as `committed_steps`, and if every checkpoint is rejected: whether to start again is the
    user's decision.
    """
    steps = checkpoints.committed_steps(recipe, fit_name)
    for step in reversed(steps):
        if not checkpoints.is_rejected(recipe, step):
            return step
    if steps:
        raise CheckpointError(
            f"run '{recipe.run.name}' has no checkpoint left that is whole ({len(steps)} are damaged or pruned, see "
            f"{rejected_folder(recipe.run.storage, recipe.run.name)}): choose a new run.name to start again"
        )
    return 0


def reject(recipe: Recipe, fit_name: str, step: int, reason: str) -> None:
    """Notes that a checkpoint cannot be loaded, and with it the older ones whose files have been pruned.

    No worker may run. Raises `CheckpointError` if no other is left.
    """
    checkpoints.write_rejection(recipe, step, reason)
    logger.error("checkpoint after step %d of run '%s' is damaged: %s", step, recipe.run.name, reason)
    present = checkpoints.present_steps(recipe)
    while (older := committed_step(recipe, fit_name)) not in present:
        checkpoints.write_rejection(recipe, older, "pruned")
    logger.error("run '%s' falls back to its checkpoint after step %d", recipe.run.name, older)


def forgive(recipe: Recipe, step: int) -> None:
    """Forgets that a checkpoint was rejected: its files have been written again."""
    checkpoints.delete_rejection(recipe, step)


def prune(recipe: Recipe, fit_name: str) -> None:
    """Deletes the files of the checkpoints that the recipe does not keep, and of those that were never committed.

    What is newer than the newest committed one is left: it may be on its way.
    """
    steps = checkpoints.committed_steps(recipe, fit_name)
    if not steps:
        return
    rules = recipe.checkpoint
    keep = kept(steps, last=rules.keep, every=rules.keep_every, best=_best(recipe, steps))
    keep |= _awaiting(recipe, steps)
    for step in sorted(checkpoints.present_steps(recipe)):
        if step <= steps[-1] and step not in keep:
            storage.delete(checkpoints.shards_uri(recipe, step))


def kept(steps: Sequence[int], *, last: int, every: int | None, best: int | None) -> set[int]:
    """Of the steps of a run's checkpoints, those to keep: the `last` newest, multiples of `every`, and the `best`."""
    newest = sorted(steps)[-last:]
    return {step for step in steps if step in newest or step == best or (every is not None and step % every == 0)}


def _best(recipe: Recipe, steps: Iterable[int]) -> int | None:
    """Of some steps, the one with the lowest figure that `checkpoint.best` names; None where none was validated."""
    name = recipe.checkpoint.best
    if name is None:
        return None
    found = validations(recipe.run.storage, recipe.run.name)
    figures = {step: json.loads(storage.read_bytes(found[step]))[name] for step in steps if step in found}
    return min(figures, key=lambda step: (figures[step], step)) if figures else None


def _awaiting(recipe: Recipe, steps: Iterable[int]) -> set[int]:
    """The newest checkpoints that are still to be validated: no more than a slow validation and the next one."""
    if recipe.evaluate.every is None:
        return set()
    newest = max(validations(recipe.run.storage, recipe.run.name), default=0)
    return set(sorted(step for step in steps if step > newest and recipe.evaluate.due(step))[-2:])
