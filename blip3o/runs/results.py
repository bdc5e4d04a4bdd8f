"""The result of a run: its weights and a description, which is written last. Without it the weights do not count.

`<run>/final/weights.safetensors` holds the trained parameters by name, `average.safetensors` their moving average if
the run kept one, and `final.json` the recipe, the sha256 of both files, and a summary.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.errors import BundleError, CheckpointError, ConfigError
from blip3o.runs.paths import final_uri
from blip3o.storage.magic import SNIFFED_BYTES, recognise
from blip3o.weights import tensor_file
from blip3o.weights.safetensors_header import StoredTensor, require_readable

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, AVERAGE, DESCRIPTION = "weights.safetensors", "average.safetensors", "final.json"


def write_final(
    uri: str,
    tensors: "Mapping[str, Tensor]",
    description: Mapping[str, Any],
    average: "Mapping[str, Tensor] | None" = None,
) -> None:
    """Writes weights and their average, then the description with the sha256 of both, which completes the result."""
    sha256 = tensor_file.write_tensor_file(storage.join(uri, WEIGHTS), tensors)
    complete = {**description, "tensors": sorted(tensors), "sha256": sha256}
    if average:
        complete["average_sha256"] = tensor_file.write_tensor_file(storage.join(uri, AVERAGE), average)
    storage.write_bytes(storage.join(uri, DESCRIPTION), json.dumps(complete, indent=1).encode())


def read_description(uri: str) -> dict[str, Any] | None:
    """The description of a finished run's result; None if the run has not finished.

    Raises `CheckpointError` if the file is corrupt.
    """
    location = storage.join(uri, DESCRIPTION)
    if not storage.exists(location):
        return None
    data = storage.read_bytes(location)
    try:
        return dict(json.loads(data))
    except (ValueError, TypeError) as error:
        found = (
            recognise(data[:SNIFFED_BYTES], size=len(data), is_text=True) or "is no JSON object: train the run again"
        )
        raise CheckpointError(f"{location} {found}") from error


def is_finished(storage_uri: str, run: str) -> bool:
    """Whether a run has a result. Raises `CheckpointError` if its description is corrupt."""
    return read_description(final_uri(storage_uri, run)) is not None


def require_finished(storage_uri: str, run: str) -> dict[str, Any]:
    """The description of a run that a stage starts from. Raises `ConfigError` if the run has not finished."""
    description = read_description(final_uri(storage_uri, run))
    if description is None:
        raise ConfigError(
            f"stage.start_from names run '{run}', which has not finished under {storage_uri}: train it, or "
            "`blip3o adopt` released weights under that name"
        )
    return description


def start_sha256(recipe: Recipe) -> list[str]:
    """The sha256 of the weights of each run that a stage starts from. Raises `ConfigError` if one has not finished."""
    return [require_finished(recipe.run.storage, run)["sha256"] for run in recipe.stage.start_from]


def read_final(uri: str, *, averaged: bool = False) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Weights and description of a finished run; if `averaged`, the moving average, which the run must have kept.

    Raises `CheckpointError` if the run has not finished, or if the weights do not match their sha256.
    """
    import torch

    from blip3o.weights.safetensors_stream import DTYPES

    tensors: dict[str, torch.Tensor] = {}

    def place(entry: StoredTensor) -> torch.Tensor:
        require_readable(entry)
        tensors[entry.name] = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        return tensors[entry.name]

    return tensors, load_final(uri, place, averaged=averaged)


def load_final(uri: str, place: "Callable[[StoredTensor], Tensor | None]", *, averaged: bool = False) -> dict[str, Any]:
    """Reads the weights of a finished run, or their moving average, into the tensors that `place` returns, as
    `blip3o.weights.safetensors_stream.load_file`; returns the description.

    If no tensor is wanted, nothing but names and shapes is read. Otherwise every byte is, and verified. Raises as
    `read_final`.
    """
    from blip3o.weights.safetensors_stream import load_file

    description = read_description(uri)
    if description is None:
        raise CheckpointError(f"{uri} holds no finished run: train it first, or correct stage.start_from")
    file, key = (AVERAGE, "average_sha256") if averaged else (WEIGHTS, "sha256")
    if key not in description:
        raise CheckpointError(
            f"{uri} holds no moving average: train the run with optim.ema_decay, or take its last weights"
        )
    location, digest = storage.join(uri, file), hashlib.sha256()
    try:
        read = load_file(location, place, digest)
    except storage.MissingFileError as error:
        raise CheckpointError(f"{uri}: {file} is missing next to {DESCRIPTION}: train the run again") from error
    except BundleError as error:  # no file of tensors, or one of another format
        raise CheckpointError(f"{error}; it is not what the run wrote: train the run again") from error
    if read and digest.hexdigest() != description[key]:
        found, written = digest.hexdigest(), description[key]
        raise CheckpointError(
            f"{location}: weights have sha256 {found[:12]}…, {written[:12]}… was written: train the run again"
        )
    return description


def read_shapes(uri: str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a finished run; reads only the header of its weights."""
    return tensor_file.read_shapes(storage.join(uri, WEIGHTS))


def read_tensors(uri: str, names: Sequence[str]) -> "Iterator[Tensor]":
    """Reads some tensors of a finished run, one after the other, by ranged reads. Their sha256 is not verified.

    Raises `CheckpointError` if one of them is missing.
    """
    return tensor_file.read_selected(storage.join(uri, WEIGHTS), names)
