"""The checkpoints of a run as files: which are committed, where they are, which are rejected.

Ray Train commits a checkpoint by naming its folder in a snapshot. That folder holds only the lists of the ranks' files;
the files themselves are below `<run>/shards`, where keeping and pruning them is ours: Ray would refuse a run if one
folder of its snapshot is gone. A checkpoint that could not be loaded has a note in `<run>/rejected`.
"""

import json

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.errors import CheckpointError
from blip3o.runs.paths import fit_uri, rejected_folder, shards_folder, snapshot_uri

_STEP = "-step-"


def name_of(run: str, step: int) -> str:
    """Directory name of a run's checkpoint after `step` optimizer steps."""
    return f"{run}{_STEP}{step:08d}"


def parse_name(name: str) -> tuple[str, int]:
    """Run and step in a checkpoint's directory name. Raises `CheckpointError` for another kind of name."""
    run, mark, digits = name.rpartition(_STEP)
    if not (run and mark and digits.isdigit()):
        raise CheckpointError(f"'{name}' is not the name of a checkpoint of ours (RUN{_STEP}########)")
    return run, int(digits)


def shards_uri(recipe: Recipe, step: int) -> str:
    """Where the files of a stage's checkpoint are."""
    return storage.join(shards_folder(recipe.run.storage, recipe.run.name), name_of(recipe.run.name, step))


def lists_uri(recipe: Recipe, fit_name: str, step: int) -> str:
    """Where the lists of those files are: the folder that Ray Train commits."""
    return storage.join(fit_uri(recipe.run.storage, fit_name), name_of(recipe.run.name, step))


def committed_steps(recipe: Recipe, fit_name: str | None = None) -> list[int]:
    """The steps of a stage's checkpoints that Ray Train has committed, ascending.

    `fit_name` is the pipeline's name, if the stage is not trained by itself. Raises `CheckpointError` if the snapshot
    is not in the form of Ray 2.60.
    """
    uri = snapshot_uri(recipe.run.storage, fit_name or recipe.run.name)
    if not storage.exists(uri):
        return []
    try:
        results = json.loads(storage.read_bytes(uri))["checkpoint_results"]
        names = [parse_name(result["checkpoint_dir_name"]) for result in results]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{uri} is not a snapshot as Ray 2.60 writes it: use the Ray version that started the run"
        ) from error
    return sorted({step for run, step in names if run == recipe.run.name})


def present_steps(recipe: Recipe) -> set[int]:
    """Steps of which there are files, committed or not."""
    root = shards_folder(recipe.run.storage, recipe.run.name)
    prefix = storage.normalize(root) + "/"
    folders = {file.uri.removeprefix(prefix).split("/")[0] for file in storage.list_files(root)}
    return {parse_name(folder)[1] for folder in folders}


def is_rejected(recipe: Recipe, step: int) -> bool:
    """Whether a checkpoint has a note that it cannot be loaded."""
    return storage.exists(_rejection_uri(recipe, step))


def write_rejection(recipe: Recipe, step: int, reason: str) -> None:
    """Notes that a checkpoint cannot be loaded."""
    storage.write_bytes(_rejection_uri(recipe, step), json.dumps({"step": step, "reason": reason}).encode())


def delete_rejection(recipe: Recipe, step: int) -> None:
    """Removes that note, if there is one."""
    storage.delete(_rejection_uri(recipe, step))


def _rejection_uri(recipe: Recipe, step: int) -> str:
    return storage.join(rejected_folder(recipe.run.storage, recipe.run.name), f"{step:08d}.json")
