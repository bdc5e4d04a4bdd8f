"""The checkpoint store of a run: which checkpoints count, which are pruned, and the fallback if one is damaged."""

import json
import logging
from collections.abc import Iterable, Sequence

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.errors import CheckpointError, StorageError
from blip3o.runs import checkpoints
from blip3o.runs.listing import validations
from blip3o.runs.paths import rejected_folder

logger = logging.getLogger(__name__)


def committed_step(recipe: Recipe, fit_name: str | None = None) -> int:
    """The step of a stage's newest committed checkpoint that is not rejected; 0 if there is no checkpoint.

    Raises `CheckpointError` as `committed_steps`, and if every checkpoint is rejected: restarting from step 0 is the
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
    """Marks a checkpoint as rejected, and also older ones whose files have been pruned.

    No worker may be running. Raises `CheckpointError` if no other checkpoint is left.
    """
    checkpoints.write_rejection(recipe, step, reason)
    logger.error("checkpoint after step %d of run '%s' is damaged: %s", step, recipe.run.name, reason)
    # Ray's snapshot still names pruned checkpoints. The run must not fall back to one of those.
    present = checkpoints.present_steps(recipe)
    while (older := committed_step(recipe, fit_name)) not in present:
        checkpoints.write_rejection(recipe, older, "pruned")
    logger.error("run '%s' falls back to its checkpoint after step %d", recipe.run.name, older)


def clear_rejection(recipe: Recipe, step: int) -> None:
    """Removes the rejection of a checkpoint whose files have been written again."""
    checkpoints.delete_rejection(recipe, step)


def prune(recipe: Recipe, fit_name: str) -> None:
    """Deletes the files of checkpoints that the recipe does not keep, and of those that were never committed.

    Files newer than the newest committed checkpoint stay: their upload may be in progress. A store that refuses is
    logged: training continues, and the next checkpoint prunes again.
    """
    try:
        for step in sorted(_superfluous(recipe, fit_name)):
            storage.delete(checkpoints.shards_uri(recipe, step))
    except StorageError as error:
        logger.warning("old checkpoints of run '%s' are not deleted: %s", recipe.run.name, error)


def _superfluous(recipe: Recipe, fit_name: str) -> set[int]:
    """The steps of the checkpoints that are to be deleted. A rejected one does not count as one that is kept."""
    rejected = checkpoints.rejected_steps(recipe)
    steps = [step for step in checkpoints.committed_steps(recipe, fit_name) if step not in rejected]
    if not steps:
        return set()
    rules = recipe.checkpoint
    keep = steps_to_keep(steps, last=rules.keep, every=rules.keep_every, best=_best(recipe, steps))
    keep |= _awaiting(recipe, steps)
    return {step for step in checkpoints.present_steps(recipe) if step <= steps[-1] and step not in keep}


def steps_to_keep(steps: Sequence[int], *, last: int, every: int | None, best: int | None) -> set[int]:
    """The steps of the checkpoints to keep: the `last` newest ones, multiples of `every`, and the `best`."""
    newest = sorted(steps)[-last:]
    return {step for step in steps if step in newest or step == best or (every is not None and step % every == 0)}


def _best(recipe: Recipe, steps: Iterable[int]) -> int | None:
    """The step with the lowest value of the metric `checkpoint.best`; None if none of the steps was validated."""
    name = recipe.checkpoint.best
    if name is None:
        return None
    found = validations(recipe.run.storage, recipe.run.name)
    figures = {step: json.loads(storage.read_bytes(found[step]))[name] for step in steps if step in found}
    return min(figures, key=lambda step: (figures[step], step)) if figures else None


def _awaiting(recipe: Recipe, steps: Iterable[int]) -> set[int]:
    """The newest checkpoints that await validation.

    At most two: the one that a slow validation reads, and the next one. Otherwise the store could fill up.
    """
    if recipe.evaluate.every is None:
        return set()
    newest = max(validations(recipe.run.storage, recipe.run.name), default=0)
    return set(sorted(step for step in steps if step > newest and recipe.evaluate.due(step))[-2:])
