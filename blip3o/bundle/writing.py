"""Writing a bundle: its files, then its seal, then a verification of what was written."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from blip3o import storage
from blip3o.bundle.layout import SEAL, WEIGHTS, BundleConfig
from blip3o.bundle.reading import build_model, load_bundle
from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.errors import BundleError
from blip3o.model.empty_weights import init_empty_weights, stored_tensors


def write_bundle(
    uri: str,
    *,
    config: BundleConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: ChatTokenizer,
    provenance: Mapping[str, Any],
) -> None:
    """Writes a bundle, seals it, loads it back and compares every tensor.

    An older bundle's seal is deleted first, so that a killed process leaves no bundle rather than a mixed one.

    Raises `BundleError` if a tensor is missing or has another shape, or if what is read back differs.
    """
    with init_empty_weights():
        model = build_model(config, tokenizer)
    needed = stored_tensors(model)
    missing = sorted(set(needed) - set(tensors))
    if missing:
        raise BundleError(
            f"{uri}: {len(missing)} tensors have no weights, e.g. {missing[0]}: export all trained stages"
        )
    for name, parameter in needed.items():
        if tensors[name].shape != parameter.shape:
            raise BundleError(
                f"{uri}: {name} is {list(tensors[name].shape)}, and a model of these sizes has "
                f"{list(parameter.shape)}: export with the recipe that it was trained with"
            )
    weights = {name: tensors[name].detach().cpu().contiguous() for name in needed}
    files = {**bundle_texts(config, tokenizer, provenance), WEIGHTS: save(weights)}
    storage.delete(storage.join(uri, SEAL))
    for name, data in files.items():
        storage.write_bytes(storage.join(uri, name), data)
    write_seal(uri, {name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    _verify(uri, weights)


def bundle_texts(config: BundleConfig, tokenizer: ChatTokenizer, provenance: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a bundle by name, except for its weights."""
    return {
        "config.json": config.model_dump_json(indent=1).encode(),
        "tokenizer.json": tokenizer.to_bytes(),
        "provenance.json": json.dumps(provenance, indent=1).encode(),
    }


def _verify(uri: str, weights: Mapping[str, Tensor]) -> None:
    read = stored_tensors(load_bundle(uri).model)
    for name, tensor in weights.items():
        if not torch.equal(read[name].cpu(), tensor.to(read[name].dtype)):
            raise BundleError(f"{uri}: {name} reads back differently than it was written: export again")


def write_seal(uri: str, checksums: Mapping[str, str]) -> None:
    """Seals a folder as a bundle: writes the sha256 of each file, by name. Call it after writing all files."""
    storage.write_bytes(storage.join(uri, SEAL), json.dumps(checksums, indent=1).encode())
