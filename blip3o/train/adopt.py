"""Takes published weights into a finished run: the work of `blip3o adopt`.

A part is a prefix of the model's parameter names, and a file or folder of safetensors with what follows it, e.g.
`decoder.vae.=s3://models/sdxl-vae` for an autoencoder of diffusers or `decoder.unet.=…/unet`; or a bundle, whose names
are whole: `backbone.=s3://models/blip3o-8b`. The result is a finished run, for `stage.start_from` and for export.
Names must be the model's own, whole or behind the prefix; a wrapper around all of them, such as `module.`, is left off.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from blip3o.config.recipe import Recipe
from blip3o.errors import CheckpointError, ConfigError
from blip3o.model.unified import PARTS, UnifiedModel
from blip3o.runs.paths import final_uri
from blip3o.runs.results import write_final
from blip3o.train.initial_weights import fitting
from blip3o.weights.folders import OTHER_SUFFIXES, SUFFIX, other_weights, weight_files
from blip3o.weights.prefixes import explain_missing, unwrap
from blip3o.weights.safetensors_header import StoredTensor
from blip3o.weights.safetensors_stream import read_entries, read_tensors

logger = logging.getLogger(__name__)


def adopt(recipe: Recipe, parts: Mapping[str, str], *, name: str) -> dict[str, Tensor]:
    """Reads parts (prefix → URI), checks them against the recipe's model, and writes them as the finished run `name`.

    Returns the tensors by the model's names. Raises `ConfigError` for a prefix that the model does not have, and
    `CheckpointError` if weights lack a parameter of their part or have another shape, and `BundleError` if a file holds
    no weights, or a parameter in a type that is not read.
    """
    with torch.device("meta"):
        model = UnifiedModel(recipe.model, image_token_id=0, parts=PARTS, max_length=recipe.data.max_length)
    tensors: dict[str, Tensor] = {}
    for prefix, uri in parts.items():
        tensors |= _part(model, prefix, uri)
    sources = dict(sorted(parts.items()))
    description: dict[str, Any] = {
        "run": name,
        "stage": "adopted",
        "identity": hashlib.sha256(json.dumps(sources).encode()).hexdigest(),
        "recipe": recipe.model_dump(mode="json"),
        "summary": sources,
    }
    write_final(final_uri(recipe.run.storage, name), tensors, description)
    return tensors


def _part(model: UnifiedModel, prefix: str, uri: str) -> dict[str, Tensor]:
    wanted = {key for key, _ in model.named_parameters() if key.startswith(prefix)}
    if not wanted:
        raise ConfigError(f"the model has no parameter '{prefix}*': name a part as the model does, e.g. decoder.vae.")
    stored = _read_heads(uri)
    names = _named(stored.keys(), wanted, prefix, uri)
    fitting(model, {key: stored[names[key]].shape for key in wanted}, source=uri)
    ignored = sorted(stored.keys() - {names[key] for key in wanted})
    logger.info("%s* from %s: %d tensors, %d ignored %s", prefix, uri, len(wanted), len(ignored), ignored[:5])
    places = {names[key]: key for key in wanted}
    entries = sorted((stored[name] for name in places), key=lambda entry: (entry.uri, entry.offset))
    return {places[entry.name]: tensor for entry, tensor in read_tensors(entries)}


def _named(stored: Collection[str], wanted: set[str], prefix: str, uri: str) -> dict[str, str]:
    """Each wanted name's name in the files: whole, or without the prefix; a wrapper around all of them is left off."""
    relative = {key.removeprefix(prefix) for key in wanted}
    attempts = [(names, unwrap(stored, names)) for names in (wanted, relative)]
    for _, attempt in attempts:
        found = {_whole(clean, prefix): name for name, clean in attempt.names.items()}
        if found.keys() >= wanted:
            if attempt.dropped:
                logger.info("%s: names are read without %s", uri, attempt.dropped)
            return found
    missing = wanted - {_whole(key, prefix) for key in stored}
    unfit = [(names, attempt.blocked) for names, attempt in attempts if attempt.blocked]
    names, blocked = unfit[0] if unfit else (missing, "")
    example = explain_missing(names, stored, blocked)
    raise CheckpointError(f"{uri} lacks {len(missing)} of {len(wanted)} tensors of {prefix}*, e.g. {example}")


def _whole(name: str, prefix: str) -> str:
    return name if name.startswith(prefix) else f"{prefix}{name}"


def _read_heads(uri: str) -> dict[str, StoredTensor]:
    """All tensors of a file or of a folder's files. Raises `ConfigError` if there are none, or one is there twice."""
    files = [uri] if uri.endswith((SUFFIX, *OTHER_SUFFIXES)) else weight_files(uri)
    if not files:
        raise ConfigError(f"{uri} holds no *{SUFFIX}: give a file, or a folder with such files{other_weights(uri)}")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        more = {entry.name: entry for entry in read_entries(file)}
        twice = tensors.keys() & more.keys()
        if twice:
            raise ConfigError(f"{uri} holds '{min(twice)}' in two files: give the file that is meant")
        tensors |= more
    return tensors
