"""Which checkpoints of a run count, where their files are, and which are pruned.

Ray Train commits a checkpoint by naming its folder in a snapshot. That folder holds the lists of the ranks' files
alone; the files themselves are below `<run>/shards`, where keeping and pruning them is ours: Ray would refuse a run of
whose snapshot one folder is gone. A checkpoint that could not be loaded has a note in `<run>/rejected`.
"""

import json
import logging
from collections.abc import Iterable

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.errors import CheckpointError
from blip3o.runs.paths import validation_folder
from blip3o.train.checkpoint import state as checkpoint

logger = logging.getLogger(__name__)

SNAPSHOT = "checkpoint_manager_snapshot.json"


def shards_uri(recipe: Recipe, step: int) -> str:
    """Where the files of a stage's checkpoint are."""
    return storage.join(recipe.run.storage, recipe.run.name, "shards", checkpoint.name_of(recipe.run.name, step))


def lists_uri(recipe: Recipe, fit_name: str, step: int) -> str:
    """Where the lists of those files are: the folder that Ray Train commits."""
    return storage.join(recipe.run.storage, fit_name, checkpoint.name_of(recipe.run.name, step))


def _rejected_uri(recipe: Recipe, step: int) -> str:
    return storage.join(recipe.run.storage, recipe.run.name, "rejected", f"{step:08d}.json")


def committed_steps(recipe: Recipe, fit_name: str | None = None) -> list[int]:
    """The steps of a stage's checkpoints that Ray Train has committed, ascending.

    `fit_name` is the pipeline's name, if the stage is not trained by itself. Raises `CheckpointError` if the snapshot
    is not in the form of Ray 2.60.
    """
    uri = storage.join(recipe.run.storage, fit_name or recipe.run.name, SNAPSHOT)
    if not storage.exists(uri):
        return []
    try:
        results = json.loads(storage.read_bytes(uri))["checkpoint_results"]
        names = [checkpoint.parse_name(result["checkpoint_dir_name"]) for result in results]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{uri} is not a snapshot as Ray 2.60 writes it: use the Ray version that started the run"
        ) from error
    return sorted({step for run, step in names if run == recipe.run.name})


def committed_step(recipe: Recipe, fit_name: str | None = None) -> int:
    """The step at which a stage goes on: that of its newest checkpoint that is not rejected, 0 where there is none.

    Stream and workers both ask this; the loop asserts that they agree. Raises `CheckpointError` as `committed_steps`,
    and if every checkpoint is rejected: whether to begin anew is the user's to say.
    """
    steps = committed_steps(recipe, fit_name)
    for step in reversed(steps):
        if not storage.exists(_rejected_uri(recipe, step)):
            return step
    if steps:
        raise CheckpointError(
            f"run '{recipe.run.name}' has no checkpoint left that is whole ({len(steps)} are damaged or pruned, see "
            f"{storage.join(recipe.run.storage, recipe.run.name, 'rejected')}): choose a new run.name to begin anew"
        )
    return 0


def reject(recipe: Recipe, fit_name: str, step: int, reason: str) -> None:
    """Notes that a checkpoint cannot be loaded, and with it the older ones whose files have been pruned.

    No worker may run. Raises `CheckpointError` if no other is left.
    """
    note = json.dumps({"step": step, "reason": reason}).encode()
    storage.write_bytes(_rejected_uri(recipe, step), note)
    logger.error("checkpoint after step %d of run '%s' is damaged: %s", step, recipe.run.name, reason)
    present = present_steps(recipe)
    while (older := committed_step(recipe, fit_name)) not in present:
        pruned = json.dumps({"step": older, "reason": "pruned"}).encode()
        storage.write_bytes(_rejected_uri(recipe, older), pruned)
    logger.error("run '%s' falls back to its checkpoint after step %d", recipe.run.name, older)


def forgive(recipe: Recipe, step: int) -> None:
    """Forgets that a checkpoint was rejected: its files have been written anew."""
    storage.delete(_rejected_uri(recipe, step))


def present_steps(recipe: Recipe) -> set[int]:
    """Steps of which there are files, committed or not."""
    root = storage.join(recipe.run.storage, recipe.run.name, "shards")
    prefix = storage.normalize(root) + "/"
    folders = {file.uri.removeprefix(prefix).split("/")[0] for file in storage.list_files(root)}
    return {checkpoint.parse_name(folder)[1] for folder in folders}


def prune(recipe: Recipe, fit_name: str) -> None:
    """Deletes the files of the checkpoints that the recipe does not keep, and of those that were never committed.

    What is newer than the newest committed one is left: it may be on its way.
    """
    steps = committed_steps(recipe, fit_name)
    if not steps:
        return
    rules = recipe.checkpoint
    kept = checkpoint.kept(steps, last=rules.keep, every=rules.keep_every, best=_best(recipe, steps))
    kept |= _awaiting(recipe, steps)
    for step in sorted(present_steps(recipe)):
        if step <= steps[-1] and step not in kept:
            storage.delete(shards_uri(recipe, step))


def _best(recipe: Recipe, steps: Iterable[int]) -> int | None:
    """Of some steps, the one with the lowest figure that `checkpoint.best` names; None where none was validated."""
    name = recipe.checkpoint.best
    if name is None:
        return None
    found = _validated(recipe)
    figures = {step: json.loads(storage.read_bytes(found[step]))[name] for step in steps if step in found}
    return min(figures, key=lambda step: (figures[step], step)) if figures else None


def _validated(recipe: Recipe) -> dict[int, str]:
    """Where the figures of each validation are, by step."""
    files = storage.list_files(validation_folder(recipe.run.storage, recipe.run.name), suffix=".json")
    return {int(file.uri.rsplit("/", 1)[1].removesuffix(".json")): file.uri for file in files}


def _awaiting(recipe: Recipe, steps: Iterable[int]) -> set[int]:
    """The newest checkpoints that are still to be validated: no more than a slow validation and the next one."""
    if recipe.evaluate.every is None:
        return set()
    newest = max(_validated(recipe), default=0)
    return set(sorted(step for step in steps if step > newest and recipe.evaluate.due(step))[-2:])
