"""The checkpoints of a run as files: which ones are committed, where they are, and which ones are rejected.

Ray Train commits a checkpoint by naming its folder in a snapshot. That folder only holds the lists of the ranks' files.
The files themselves are below `<run>/shards`, where this project prunes them: Ray refuses to resume a run if a folder
of its snapshot is missing. A checkpoint that could not be loaded has a note in `<run>/rejected`.
"""

import json

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.errors import CheckpointError
from blip3o.runs.paths import fit_uri, rejected_folder, shards_folder, snapshot_uri

_STEP = "-step-"


def checkpoint_name(run: str, step: int) -> str:
    """The folder name of a run's checkpoint after `step` optimizer steps."""
    return f"{run}{_STEP}{step:08d}"


def parse_checkpoint_name(name: str) -> tuple[str, int]:
    """Run and step in a checkpoint's folder name. Raises `CheckpointError` for any other name."""
    run, mark, digits = name.rpartition(_STEP)
    if not (run and mark and digits.isdigit()):
        raise CheckpointError(f"'{name}' is not the name of a checkpoint of ours (RUN{_STEP}########)")
    return run, int(digits)


def shards_uri(recipe: Recipe, step: int) -> str:
    """The folder of the files of a stage's checkpoint."""
    return storage.join(shards_folder(recipe.run.storage, recipe.run.name), checkpoint_name(recipe.run.name, step))


def lists_uri(recipe: Recipe, fit_name: str, step: int) -> str:
    """The folder of the lists of those files, which is the folder that Ray Train commits."""
    return storage.join(fit_uri(recipe.run.storage, fit_name), checkpoint_name(recipe.run.name, step))


def committed_steps(recipe: Recipe, fit_name: str | None = None) -> list[int]:
    """The steps of a stage's checkpoints that Ray Train has committed, ascending.

    `fit_name` is the pipeline's name; by default the run's, for a stage trained by itself. Raises `CheckpointError` if
    the snapshot does not have the format of Ray 2.60.
    """
    uri = snapshot_uri(recipe.run.storage, fit_name or recipe.run.name)
    if not storage.exists(uri):
        return []
    try:
        results = json.loads(storage.read_bytes(uri))["checkpoint_results"]
        names = [parse_checkpoint_name(result["checkpoint_dir_name"]) for result in results]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{uri} is not a snapshot as Ray 2.60 writes it: use the Ray version that started the run"
        ) from error
    return sorted({step for run, step in names if run == recipe.run.name})


def present_steps(recipe: Recipe) -> set[int]:
    """The steps of checkpoints that have files, committed or not."""
    root = shards_folder(recipe.run.storage, recipe.run.name)
    prefix = storage.normalize(root) + "/"
    folders = {file.uri.removeprefix(prefix).split("/")[0] for file in storage.list_files(root)}
    return {parse_checkpoint_name(folder)[1] for folder in folders}


def is_rejected(recipe: Recipe, step: int) -> bool:
    """Whether a checkpoint has a note that it cannot be loaded."""
    return storage.exists(_rejection_uri(recipe, step))


def rejected_steps(recipe: Recipe) -> set[int]:
    """The steps of checkpoints with such a note."""
    files = storage.list_files(rejected_folder(recipe.run.storage, recipe.run.name), suffix=".json")
    return {int(file.uri.rsplit("/", 1)[1].removesuffix(".json")) for file in files}


def write_rejection(recipe: Recipe, step: int, reason: str) -> None:
    """Writes a note that a checkpoint cannot be loaded."""
    storage.write_bytes(_rejection_uri(recipe, step), json.dumps({"step": step, "reason": reason}).encode())


def delete_rejection(recipe: Recipe, step: int) -> None:
    """Removes that note, if there is one."""
    storage.delete(_rejection_uri(recipe, step))


def _rejection_uri(recipe: Recipe, step: int) -> str:
    return storage.join(rejected_folder(recipe.run.storage, recipe.run.name), f"{step:08d}.json")
