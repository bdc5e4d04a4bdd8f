"""Exports finished runs as a bundle: the implementation of `blip3o export`.

If two runs trained the same parameter, the later one wins. A run that kept a moving average contributes the average,
unless another of the runs started from its last weights, or `--last-weights` is given. The bundle is reloaded and
compared before the job succeeds.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from blip3o.bundle.layout import PARTS, BundleConfig
from blip3o.bundle.writing import write_bundle
from blip3o.config.load import flattened
from blip3o.config.objectives import stage_names
from blip3o.config.recipe import Recipe
from blip3o.data.inputs import StageInputs
from blip3o.errors import BundleError
from blip3o.runs.paths import final_uri
from blip3o.runs.results import read_description, read_final

CONFIGURED = {"backbone", "encoder", "dit"}  # parts that need the same section of the recipe as in training
PROMPTED = {"backbone", "queries", "dit"}  # parts that were trained with the text of a prompt template


def export(recipe: Recipe, runs: list[str], out: str, *, averages: bool = True, parts: tuple[str, ...] = PARTS) -> str:
    """Writes the bundle of these runs and returns its URI. With `averages`, it takes the moving averages of runs.

    With `parts=("backbone",)` the bundle only chats. Raises `CheckpointError` or `BundleError`, also if a run was
    trained with other settings of the parts that it contributes.
    """
    tensors: dict[str, Tensor] = {}
    provenance: dict[str, Any] = {"runs": {}}
    averaged = averaged_runs(recipe.run.storage, runs) if averages else set()
    for run in runs:
        trained, description = read_final(final_uri(recipe.run.storage, run), averaged=run in averaged)
        require_as_trained(recipe, run, trained, description)
        tensors |= trained
        provenance["runs"][run] = {key: description[key] for key in ("stage", "identity", "sha256", "recipe")}
        provenance["runs"][run]["averaged"] = run in averaged
    config = BundleConfig(
        model=recipe.model, template=recipe.data.template, max_length=recipe.data.max_length, parts=parts
    )
    write_bundle(out, config=config, tensors=tensors, tokenizer=StageInputs(recipe).tokenizer, provenance=provenance)
    return out


def require_as_trained(recipe: Recipe, run: str, trained: Iterable[str], description: Mapping[str, Any]) -> None:
    """Raises `BundleError` if a run was trained with other settings of the parts that it contributes.

    Such weights would load without an error and give wrong outputs. Settings of samplers and decoders that only matter
    at inference may differ.
    """
    parts = {name.partition(".")[0] for name in trained}
    deciding = [f"model.{part}." for part in sorted(parts & CONFIGURED)]
    if parts & PROMPTED and description["stage"] in stage_names():
        deciding.append("data.template.")
    theirs, ours = flattened(description["recipe"]), flattened(recipe.model_dump(mode="json"))
    differing = [key for key in ours if key in theirs and key.startswith(tuple(deciding)) and ours[key] != theirs[key]]
    if differing:
        found = ", ".join(f"{key}={theirs[key]} (here {ours[key]})" for key in differing)
        raise BundleError(f"run '{run}' was trained with {found}: export with the settings of its training")


def averaged_runs(storage_uri: str, runs: list[str]) -> set[str]:
    """The runs of which the moving average is exported: those that kept one and that none of the others started from.

    Parts trained on top of a run's last weights fit those weights, not their average.
    """
    found = {run: read_description(final_uri(storage_uri, run)) for run in runs}
    known = {run: description for run, description in found.items() if description is not None}
    built_on = {start for description in known.values() for start in description["recipe"]["stage"]["start_from"]}
    return {run for run, description in known.items() if "average_sha256" in description} - built_on
