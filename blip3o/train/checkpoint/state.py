"""The content of a checkpoint: DeepSpeed's shards of the trained state, the step, and the run's identity.

Each rank writes its shards into a directory of its own; the caller uploads and commits them. The identity, a sha256 of
everything that determines the numbers, prevents a run from resuming with other data or another recipe under its name.
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

if TYPE_CHECKING:  # `identity` is used by processes without PyTorch
    from blip3o.train.ema import Ema

TAG, UNIVERSAL = "state", "universal"


def deciding(recipe: Recipe, *, data_sha256: Sequence[str]) -> dict[str, Any]:
    """The parts of a recipe that determine the numbers, hashes of its data, and of the weights it starts from.

    `data_sha256` is `StageInputs.sha256`. Raises `ConfigError` if a run that it starts from has not finished.
    """
    # Left out on purpose: workers, ZeRO stage, logging and checkpoint rules, which may change between two submissions.
    # So may compile and deterministic, which choose among kernels that differ by rounding.
    # And so may the reader, since all give the same arrays.
    values = recipe.model_dump(mode="json", include={"data", "model", "stage", "optim"}, exclude={"data": {"reader"}})
    values |= {"seed": recipe.run.seed, "precision": recipe.parallel.precision}
    if recipe.data.features == "cache" and recipe.parallel.encoder_batch_size is not None:
        values["encoder_batch_size"] = recipe.parallel.encoder_batch_size  # stored features are rounded by it
    # Where omitted, identities are those of before the keys existed.
    dtypes = recipe.parallel.model_dump(include={"gradient_accumulation_dtype", "communication_dtype"})
    values |= {name: dtype for name, dtype in dtypes.items() if dtype is not None}
    return values | {"data_sha256": list(data_sha256), "start": start_sha256(recipe)}


def identity(recipe: Recipe, *, data_sha256: Sequence[str]) -> str:
    """sha256 of what is `deciding`. Raises as it does."""
    values = deciding(recipe, data_sha256=data_sha256)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def save(
    engine: Any,  # noqa: ANN401 - a DeepSpeedEngine
    directory: str,
    *,
    step: int,
    identity: str,
    state: Mapping[str, Any],
    ema: "Ema | None" = None,
) -> None:
    """Writes this rank's shards, those of the moving average if there is one, and `state` (plain values).

    Every rank must call it.
    """
    client_state = {"step": step, "identity": identity, "state": dict(state)}
    engine.save_checkpoint(directory, tag=TAG, client_state=client_state, exclude_frozen_parameters=True)
    if ema is not None:
        ema.save(directory)


def make_universal(directory: Path) -> None:
    """Converts the shards of all ranks in a directory to DeepSpeed's universal format, next to them.

    That format holds each parameter and its optimizer state unpartitioned, so any number of ranks can load its share.
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
    ema: "Ema | None" = None,
) -> tuple[int, dict[str, Any]]:
    """Restores weights, optimizer and moving average; returns the step and the saved state.

    A `universal` checkpoint needs an engine that was built for one. Raises `CheckpointError` if DeepSpeed cannot load
    it, or if it belongs to another recipe, other data or another ZeRO stage (1 and 2 are interchangeable).
    """
    _require_zero_stage(engine, Path(directory) / TAG)
    path, client = _load_engine(engine, directory, tag=UNIVERSAL if universal else TAG)
    if path is None:
        raise CheckpointError(f"{directory} holds no checkpoint that DeepSpeed can read")
    if client["identity"] != identity:
        raise CheckpointError(
            "the checkpoint under this run.name was made with another recipe or other data: "
            "choose a new run.name, or restore the old recipe"
        )
    if ema is not None:
        ema.load(directory)
    return int(client["step"]), client["state"]


def _require_zero_stage(engine: Any, folder: Path) -> None:  # noqa: ANN401 - a DeepSpeedEngine
    stage, saved = engine.zero_optimization_stage(), _saved_stages(folder)
    if stage not in saved:
        raise CheckpointError(
            f"the checkpoint under this run.name was saved at ZeRO stage {' or '.join(map(str, saved))}, and "
            f"parallel.zero_stage is {stage}: set it back, or choose a new run.name"
        )


def _load_engine(engine: Any, directory: str, *, tag: str) -> tuple[str | None, dict[str, Any]]:  # noqa: ANN401
    """DeepSpeed's loading, except that hyperparameters stay those of the recipe. Returns path and client state."""
    groups = engine.optimizer.param_groups
    own = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    path, client = engine.load_checkpoint(directory, tag=tag, load_module_strict=False)
    # At stage 3, a universal checkpoint gives all groups the hyperparameters of the first group, and all parameters
    # one shared tensor as their step counter: AdamW would then advance it once per parameter.
    for group, values in zip(groups, own, strict=True):
        for name in group.keys() - values.keys() - {"params"}:
            del group[name]
        group.update(values)
    fused = any(group.get("fused") for group in groups)
    for parameter, moments in engine.basic_optimizer.state.items():
        if "step" in moments:
            # A fused optimizer counts steps on the device, any other on the CPU.
            moments["step"] = moments["step"].clone().to(parameter.device if fused else "cpu")
    return path, client


def _saved_stages(folder: Path) -> tuple[int, ...]:
    """The ZeRO stages that write such files: stage 3 partitions parameters, 1 and 2 only the optimizer's state."""
    if any(folder.glob("zero_pp_rank_*_model_states.pt")):
        return (3,)
    return (1, 2) if any(folder.glob("*_optim_states.pt")) else (0,)
