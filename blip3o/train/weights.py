"""Weights as they travel between stages: named tensors in safetensors, with a description that is written last.

A run's result is `<run>/final/weights.safetensors` (what the stage trained, by parameter name), the moving average of
the same if it kept one (`average.safetensors`), and `<run>/final/final.json` (recipe, sha256, summary). Without the
last the others do not count.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.errors import CheckpointError, ConfigError, StorageError
from blip3o.model.unified import UnifiedModel
from blip3o.storage.magic import SNIFFED_BYTES, recognise
from blip3o.weights.safetensors_header import StoredTensor, read_header

WEIGHTS, AVERAGE, DESCRIPTION = "weights.safetensors", "average.safetensors", "final.json"


def final_uri(storage_uri: str, run: str) -> str:
    """Where the result of a run is kept."""
    return storage.join(storage_uri, run, "final")


def write_final(
    uri: str,
    tensors: Mapping[str, Tensor],
    description: Mapping[str, Any],
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes weights and their average, then the description with the sha256 of both, which makes the result whole."""
    whole = {**description, "tensors": sorted(tensors), "sha256": _write(uri, WEIGHTS, tensors)}
    if average:
        whole["average_sha256"] = _write(uri, AVERAGE, average)
    storage.write_bytes(storage.join(uri, DESCRIPTION), json.dumps(whole, indent=1).encode())


def _write(uri: str, file: str, tensors: Mapping[str, Tensor]) -> str:
    """Writes a file of tensors and returns its sha256."""
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    storage.write_bytes(storage.join(uri, file), data)
    return hashlib.sha256(data).hexdigest()


def read_description(uri: str) -> dict[str, Any] | None:
    """The description of a finished run's result; None where the run has not finished.

    Raises `CheckpointError` if the file is not what was written.
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


def start_sha256(recipe: Recipe) -> list[str]:
    """sha256 of the weights that a stage starts from. Raises `ConfigError` if one of those runs has not finished."""
    found = []
    for run in recipe.stage.start_from:
        description = read_description(final_uri(recipe.run.storage, run))
        if description is None:
            raise ConfigError(f"stage.start_from names run '{run}', which has not finished under {recipe.run.storage}")
        found.append(description["sha256"])
    return found


def read_final(uri: str, *, averaged: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and description of a finished run; if `averaged`, their moving average, which the run must have kept.

    Raises `CheckpointError` if the run has not finished, or if the weights are not the ones that were written.
    """
    description = read_description(uri)
    if description is None:
        raise CheckpointError(f"{uri} holds no finished run: train it first, or correct stage.start_from")
    file, key = (AVERAGE, "average_sha256") if averaged else (WEIGHTS, "sha256")
    if key not in description:
        raise CheckpointError(
            f"{uri} holds no moving average: train the run with optim.ema_decay, or take its last weights"
        )
    try:
        data = storage.read_bytes(storage.join(uri, file))
    except StorageError as error:
        raise CheckpointError(f"{uri}: {file} is missing beside {DESCRIPTION}: train the run again") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != description[key]:
        found = recognise(data[:SNIFFED_BYTES], size=len(data))
        raise CheckpointError(
            f"{uri}: {file} {found}"
            if found
            else f"{uri}: weights have sha256 {digest[:12]}…, {description[key][:12]}… was written: train again"
        )
    return load(data), description


def read_shapes(uri: str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a finished run, read from the head of its weights alone."""
    return {name: entry.shape for name, entry in _entries(uri).items()}


def _entries(uri: str) -> dict[str, StoredTensor]:
    location = storage.join(uri, WEIGHTS)
    with storage.open_ranges(location) as file:
        return {entry.name: entry for entry in read_header(location, file)[1]}


def read_tensors(uri: str, names: Sequence[str]) -> Iterator[Tensor]:
    """Some tensors of a finished run, one after the other by ranged reads; they are not checked against its sha256.

    Raises `CheckpointError` if it does not hold one of them.
    """
    entries = _entries(uri)
    with storage.open_ranges(storage.join(uri, WEIGHTS)) as file:
        for name in names:
            if name not in entries:
                raise CheckpointError(f"{uri} holds no tensor {name}: use the same model preset")
            entry = entries[name]
            about = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [0, entry.size]}
            head = json.dumps({name: about}).encode()
            yield load(len(head).to_bytes(8, "little") + head + file.read(entry.offset, entry.size))[name]


def fitting(model: UnifiedModel, shapes: Mapping[str, tuple[int, ...]], *, source: str) -> set[str]:
    """The names that the model has a place for. Raises `CheckpointError` if one of them has another shape there."""
    own = model.state_dict()
    names = shapes.keys() & own.keys()
    for name in sorted(names):
        if shapes[name] != tuple(own[name].shape):
            raise CheckpointError(
                f"{source}: {name} has shape {shapes[name]}, the model needs {tuple(own[name].shape)}: use the same "
                "model preset"
            )
    return set(names)


def load_into(model: UnifiedModel, tensors: Mapping[str, Tensor], *, source: str) -> set[str]:
    """Copies the tensors that the model has a place for and returns their names.

    Raises `CheckpointError` if a shape differs.
    """
    names = fitting(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, source=source)
    model.load_state_dict({name: tensors[name] for name in names}, strict=False)
    return names


def require_covered(model: UnifiedModel, loaded: set[str], trainable: list[str]) -> None:
    """Raises `CheckpointError` if a frozen parameter came from nowhere: a stage must not build on random weights."""
    missing = [name for name, _ in model.named_parameters() if name not in loaded and name not in set(trainable)]
    if missing:
        parts = sorted({name.split(".")[0] for name in missing})
        raise CheckpointError(
            f"frozen parts {', '.join(parts)} have no weights ({len(missing)} tensors, e.g. {missing[0]}): "
            "name the runs that trained them in stage.start_from"
        )


@torch.no_grad()
def require_agreement(module: nn.Module, device: torch.device) -> None:
    """Raises `CheckpointError` that names a parameter whose sum is not the same, finite number on all ranks.

    Every rank must call it, on the same module, before parameters are spread. It is also the workers' first sum, before
    anything costly is built. Sums are fp64, so equal weights agree to the bit. `device` is where collectives work.
    """
    named = dict(module.named_parameters())
    sums = torch.stack([parameter.sum(dtype=torch.float64) for parameter in named.values()]).to(device)
    sums = sums.nan_to_num(nan=math.inf)  # smallest and largest of what is not a number depend on the order
    lowest, highest = sums.clone(), sums.clone()
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    for name, low, high in zip(named, lowest.tolist(), highest.tolist(), strict=True):
        if low != high or not math.isfinite(low):
            raise CheckpointError(
                f"{name} sums to {low} on one rank and to {high} on another: the ranks read other weights; compare "
                "their storage and environments"
            )
