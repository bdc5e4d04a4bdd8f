"""Checkpoints of a stage in progress: DeepSpeed's shards of what is trained, the step, and the run's identity.

Each rank writes its own shards into a directory of its own; the caller merges and commits them. The identity (a sha256
over everything that decides the numbers) keeps a run from going on with other data or another recipe under an old name.
"""

import hashlib
import json
from typing import Any

from blip3o.config.recipe import Recipe
from blip3o.errors import CheckpointError

TAG = "state"
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


def identity(recipe: Recipe, *, data_sha256: list[str], start_sha256: list[str]) -> str:
    """sha256 over the parts of a recipe that decide the numbers, its data, and the weights it starts from.

    `data_sha256` are of the order, the manifests and the tokenizer.
    """
    deciding = recipe.model_dump(mode="json", include={"data", "model", "stage", "optim"})
    deciding |= {"seed": recipe.run.seed, "precision": recipe.parallel.precision}
    deciding |= {"data_sha256": data_sha256, "start": start_sha256}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def save(engine: Any, directory: str, *, step: int, identity: str) -> None:  # noqa: ANN401 - a DeepSpeedEngine
    """Writes this rank's shards. Every rank must call it."""
    engine.save_checkpoint(
        directory, tag=TAG, client_state={"step": step, "identity": identity}, exclude_frozen_parameters=True
    )


def load(engine: Any, directory: str, *, identity: str) -> int:  # noqa: ANN401 - as above
    """Restores weights and optimizer and returns the step.

    Raises `CheckpointError` if nothing could be loaded, or if the checkpoint belongs to another recipe or other data.
    """
    path, client = engine.load_checkpoint(directory, tag=TAG, load_module_strict=False)
    if path is None:
        raise CheckpointError(f"{directory} holds no checkpoint that DeepSpeed can read")
    if client["identity"] != identity:
        raise CheckpointError(
            "the checkpoint under this run.name was made with another recipe or other data: "
            "choose a new run.name, or restore the old recipe"
        )
    return int(client["step"])
