"""Takes published weights into a run: `python -m jobs.adopt RECIPE --name RUN --part PREFIX=URI [--part …]`.

A part is a prefix of the model's parameter names, and a file or folder of safetensors with what follows it, e.g.
`decoder.vae.=s3://models/sdxl-vae` for an autoencoder of diffusers or `decoder.unet.=…/unet`; or a bundle, whose names
are whole: `backbone.=s3://models/blip3o-8b`. The result is a finished run, for `stage.start_from` and for export.
Nothing is renamed: names must be the model's own, whole or behind the prefix.
"""

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from blip3o.config.recipe import Recipe
from blip3o.data import storage
from blip3o.errors import CheckpointError, ConfigError
from blip3o.model.unified import PARTS, UnifiedModel
from blip3o.train.weights import final_uri, fitting, write_final
from jobs.common import run_job

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"


def adopt(recipe: Recipe, parts: Mapping[str, str], *, name: str) -> dict[str, Tensor]:
    """Reads parts (prefix → URI), checks them against the recipe's model, and writes them as the finished run `name`.

    Returns the tensors by the model's names. Raises `ConfigError` for a prefix that the model does not have, and
    `CheckpointError` if weights lack a parameter of their part or have another shape.
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
    found = {key if key.startswith(prefix) else f"{prefix}{key}": tensor for key, tensor in _read(uri).items()}
    missing = sorted(wanted - found.keys())
    if missing:
        raise CheckpointError(f"{uri} lacks {len(missing)} of {len(wanted)} tensors of {prefix}*, e.g. {missing[0]}")
    fitting(model, {key: tuple(found[key].shape) for key in wanted}, source=uri)
    ignored = sorted(found.keys() - wanted)
    logger.info("%s* from %s: %d tensors, %d ignored %s", prefix, uri, len(wanted), len(ignored), ignored[:5])
    return {key: found[key] for key in wanted}


def _read(uri: str) -> dict[str, Tensor]:
    """All tensors of a file or of a folder's files. Raises `ConfigError` if there are none, or one is there twice."""
    files = [uri] if uri.endswith(SUFFIX) else [file.uri for file in storage.list_files(uri, suffix=SUFFIX)]
    if not files:
        raise ConfigError(f"{uri} holds no *{SUFFIX}: give a file, or a folder with such files")
    tensors: dict[str, Tensor] = {}
    for file in files:
        more = load(storage.read_bytes(file))
        twice = tensors.keys() & more.keys()
        if twice:
            raise ConfigError(f"{uri} holds '{min(twice)}' in two files: give the file that is meant")
        tensors |= more
    return tensors


def _pair(text: str) -> tuple[str, str]:
    prefix, equals, uri = text.partition("=")
    if not (prefix and equals and uri):
        raise argparse.ArgumentTypeError(f"'{text}' is not PREFIX=URI")
    return prefix, uri


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, metavar="RUN", help="name of the run that the result is written as")
    parser.add_argument(
        "--part", action="append", required=True, type=_pair, metavar="PREFIX=URI", help="weights of a part; repeat"
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return run_job(
        "adopt",
        "Take published weights into a finished run.",
        lambda recipe, options: adopt(recipe, dict(options.part), name=options.name),
        argv,
        extend=_options,
    )


if __name__ == "__main__":
    sys.exit(main())
