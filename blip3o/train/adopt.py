"""Imports published weights, or a bundle, as a finished run: the implementation of `blip3o adopt`.

A part is a prefix of the model's parameter names, with a file or folder of safetensors. The files may use names
relative to the prefix, as `decoder.vae.=s3://models/sdxl-vae` for a diffusers autoencoder or `decoder.unet.=…/unet`, or
full names, as in a bundle: `backbone.=s3://models/blip3o-8b`. A wrapper around all names, such as `module.`, is
removed. The result is a finished run, for `stage.start_from` and for export.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from blip3o import storage
from blip3o.bundle.layout import WEIGHTS
from blip3o.bundle.reading import open_bundle
from blip3o.config.recipe import Recipe
from blip3o.data.shards.locations import tokenizer_uri
from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.data.text.tokenizer_files import read_tokenizer_json
from blip3o.errors import BundleError, CheckpointError, ConfigError
from blip3o.model.empty_weights import stored_tensors
from blip3o.model.unified import PARTS, UnifiedModel
from blip3o.runs.paths import final_uri
from blip3o.runs.results import write_final
from blip3o.train.export import differing_settings
from blip3o.train.initial_weights import matching_names
from blip3o.weights.folders import OTHER_SUFFIXES, SUFFIX, other_weights, weight_files
from blip3o.weights.prefixes import explain_missing, unwrap
from blip3o.weights.safetensors_header import StoredTensor
from blip3o.weights.safetensors_stream import read_entries, read_tensors

logger = logging.getLogger(__name__)


def adopt(recipe: Recipe, parts: Mapping[str, str], *, name: str) -> dict[str, Tensor]:
    """Reads parts (prefix → URI), checks them against the recipe's model, and writes them as the finished run `name`.

    Returns the tensors by the model's names. Raises `ConfigError` for a prefix that the model does not have,
    `CheckpointError` if a parameter is missing or has another shape, and `BundleError` if a file holds no weights or
    has a parameter in an unsupported dtype.
    """
    model = _build_model(recipe)
    tensors: dict[str, Tensor] = {}
    for prefix, uri in parts.items():
        wanted = {key for key, _ in model.named_parameters() if key.startswith(prefix)}
        if not wanted:
            raise ConfigError(
                f"the model has no parameter '{prefix}*': name a part as the model does, e.g. decoder.vae."
            )
        tensors |= _read_part(model, prefix, wanted, uri)
    _write(recipe, name, tensors, dict(sorted(parts.items())))
    return tensors


def adopt_bundle(recipe: Recipe, uri: str, *, name: str) -> dict[str, Tensor]:
    """Writes a bundle's weights as the finished run `name`, and its tokenizer to `data.tokenizer` if none is there.

    Returns the tensors by name. Raises `ConfigError` if the recipe has other settings of the model or of the prompts,
    or another tokenizer, `CheckpointError` if a tensor has another shape, `BundleError` if the bundle is damaged.
    """
    bundle, model = open_bundle(uri), _build_model(recipe)
    stored = stored_tensors(model)
    wanted = {key for key in stored if key.partition(".")[0] in bundle.config.parts}
    if differing := differing_settings(recipe, wanted, bundle.config.settings(), prompted=True):
        raise ConfigError(f"{uri} has {differing}: give the recipe the bundle's values")
    place, known = tokenizer_uri(recipe.data), bundle.tokenizer.to_bytes()
    has_tokenizer = storage.exists(place)
    if has_tokenizer and ChatTokenizer.from_bytes(read_tokenizer_json(place)).to_bytes() != known:
        raise ConfigError(
            f"{place} is another tokenizer than that of {uri}, whose weights know only its own: give the recipe a "
            f"data.tokenizer that does not exist yet, or {storage.join(uri, 'tokenizer.json')}"
        )
    if not bundle.has_sealed_weights():
        raise BundleError(f"{uri}: the weights are not what was exported (their sha256 differs): export it again")
    tensors = _read_part(model, "", wanted, uri)
    if not has_tokenizer:
        storage.write_bytes(place, known)
        logger.info("wrote %s", place)
    _write(recipe, name, tensors, {"bundle": uri, "sha256": bundle.checksums[WEIGHTS]})
    return tensors


def _build_model(recipe: Recipe) -> UnifiedModel:
    """Without weights."""
    with torch.device("meta"):
        return UnifiedModel(recipe.model, image_token_id=0, parts=PARTS, max_length=recipe.data.max_length)


def _write(recipe: Recipe, name: str, tensors: Mapping[str, Tensor], sources: Mapping[str, str]) -> None:
    description: dict[str, Any] = {
        "run": name,
        "stage": "adopted",
        "identity": hashlib.sha256(json.dumps(sources).encode()).hexdigest(),
        "recipe": recipe.model_dump(mode="json"),
        "summary": sources,
    }
    write_final(final_uri(recipe.run.storage, name), tensors, description)


def _read_part(model: UnifiedModel, prefix: str, wanted: set[str], uri: str) -> dict[str, Tensor]:
    """The tensors `wanted`, which all begin with `prefix`, by the model's names."""
    stored = _read_entries(uri)
    names = _match_names(stored.keys(), wanted, prefix, uri)
    matching_names(model, {key: stored[names[key]].shape for key in wanted}, source=uri)
    ignored = sorted(stored.keys() - {names[key] for key in wanted})
    logger.info("%s* from %s: %d tensors, %d ignored %s", prefix, uri, len(wanted), len(ignored), ignored[:5])
    keys = {names[key]: key for key in wanted}
    # In file order, so that every file is read once from front to back.
    entries = sorted((stored[name] for name in keys), key=lambda entry: (entry.uri, entry.offset))
    return {keys[entry.name]: tensor for entry, tensor in read_tensors(entries)}


def _match_names(stored: Collection[str], wanted: set[str], prefix: str, uri: str) -> dict[str, str]:
    """Maps each wanted name to its name in the files, which is full or relative to the prefix, without a wrapper."""
    relative = {key.removeprefix(prefix) for key in wanted}
    attempts = [(names, unwrap(stored, names)) for names in (wanted, relative)]
    for _, attempt in attempts:
        found = {_full_name(clean, prefix): name for name, clean in attempt.names.items()}
        if found.keys() >= wanted:
            if attempt.dropped:
                logger.info("%s: %s is removed from names", uri, attempt.dropped)
            return found
    missing = wanted - {_full_name(key, prefix) for key in stored}
    blocked_attempts = [(names, attempt.blocked) for names, attempt in attempts if attempt.blocked]
    names, blocked = blocked_attempts[0] if blocked_attempts else (missing, "")
    example = explain_missing(names, stored, blocked)
    raise CheckpointError(f"{uri} is missing {len(missing)} of {len(wanted)} tensors of {prefix}*, e.g. {example}")


def _full_name(name: str, prefix: str) -> str:
    return name if name.startswith(prefix) else f"{prefix}{name}"


def _read_entries(uri: str) -> dict[str, StoredTensor]:
    """The headers of all tensors in a file or a folder. Raises `ConfigError` if there are none or a name repeats."""
    files = [uri] if uri.endswith((SUFFIX, *OTHER_SUFFIXES)) else weight_files(uri)
    if not files:
        raise ConfigError(f"{uri} holds no *{SUFFIX}: give a file, or a folder with such files{other_weights(uri)}")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        entries = {entry.name: entry for entry in read_entries(file)}
        repeated = tensors.keys() & entries.keys()
        if repeated:
            raise ConfigError(f"{uri} holds '{min(repeated)}' in two files: give the file that is meant")
        tensors |= entries
    return tensors
