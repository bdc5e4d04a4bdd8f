"""Checkpoints of a stage in progress: DeepSpeed's shards of what is trained, the step, and the run's identity.

Each rank writes its own shards into a directory of its own; the caller merges and commits them. The identity (a sha256
over everything that decides the numbers) keeps a run from going on with other data or another recipe under an old name.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip3o.config.recipe import Recipe
from blip3o.errors import CheckpointError
from blip3o.runs.results import start_sha256

if TYPE_CHECKING:  # whoever only asks for an identity needs no PyTorch
    from blip3o.train.ema import Ema

TAG, UNIVERSAL = "state", "universal"


def identity(recipe: Recipe, *, data_sha256: Sequence[str]) -> str:
    """sha256 over the parts of a recipe that decide the numbers, its data, and the weights it starts from.

    `data_sha256` are those of `StageInputs`. Raises `ConfigError` if a run that it starts from has not finished.
    """
    deciding = recipe.model_dump(mode="json", include={"data", "model", "stage", "optim"})
    deciding |= {"seed": recipe.run.seed, "precision": recipe.parallel.precision}
    deciding |= {"data_sha256": list(data_sha256), "start": start_sha256(recipe)}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def save(
    engine: Any,  # noqa: ANN401 - a DeepSpeedEngine
    directory: str,
    *,
    step: int,
    identity: str,
    state: Mapping[str, Any],
    average: "Ema | None" = None,
) -> None:
    """Writes this rank's shards, those of the average if there is one, and `state`, plain values that the run goes on
    from. Every rank must call it.
    """
    client_state = {"step": step, "identity": identity, "state": dict(state)}
    engine.save_checkpoint(directory, tag=TAG, client_state=client_state, exclude_frozen_parameters=True)
    if average is not None:
        average.save(directory)


def make_universal(directory: Path) -> None:
    """Makes DeepSpeed's universal form of the shards of all ranks in a directory, beside them.

    It holds every parameter and its optimizer's state whole, so that any number of ranks can take its share of it.
    """
    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(directory / TAG),
            output_folder=str(directory / UNIVERSAL),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )
    (directory / "latest_universal").write_text(UNIVERSAL, encoding="utf-8")


def load(
    engine: Any,  # noqa: ANN401 - a DeepSpeedEngine
    directory: str,
    *,
    identity: str,
    universal: bool = False,
    average: "Ema | None" = None,
) -> tuple[int, dict[str, Any]]:
    """Restores weights, optimizer and average; returns the step and the state that was saved.

    A `universal` checkpoint needs an engine that was built for one. Raises `CheckpointError` if nothing could be
    loaded, or if the checkpoint belongs to another recipe, other data or another ZeRO stage (1 and 2 are alike).
    """
    stage, saved = engine.zero_optimization_stage(), _saved_stages(Path(directory) / TAG)
    if stage not in saved:
        raise CheckpointError(
            f"the checkpoint under this run.name was saved at ZeRO stage {' or '.join(map(str, saved))}, and "
            f"parallel.zero_stage is {stage}: set it back, or choose a new run.name"
        )
    tag = UNIVERSAL if universal else TAG
    groups = engine.optimizer.param_groups
    own = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    path, client = engine.load_checkpoint(directory, tag=tag, load_module_strict=False)
    # What a group is trained with is the recipe's to say. At stage 3 a universal checkpoint would give all groups the
    # values of the first, and one tensor for all to count their steps in.
    for group, values in zip(groups, own, strict=True):
        for name in group.keys() - values.keys() - {"params"}:
            del group[name]
        group.update(values)
    for moments in engine.basic_optimizer.state.values():
        if "step" in moments:
            moments["step"] = moments["step"].clone()
    if path is None:
        raise CheckpointError(f"{directory} holds no checkpoint that DeepSpeed can read")
    if client["identity"] != identity:
        raise CheckpointError(
            "the checkpoint under this run.name was made with another recipe or other data: "
            "choose a new run.name, or restore the old recipe"
        )
    if average is not None:
        average.load(directory)
    return int(client["step"]), client["state"]


def _saved_stages(folder: Path) -> tuple[int, ...]:
    """The ZeRO stages whose files these are: 3 has the parameters of each rank, 1 and 2 the optimizer's state alone."""
    if any(folder.glob("zero_pp_rank_*_model_states.pt")):
        return (3,)
    return (1, 2) if any(folder.glob("*_optim_states.pt")) else (0,)
