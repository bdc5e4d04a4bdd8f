"""The bundle: a folder that serving needs and nothing beside it.

It holds `config.json` (format, model, template), `model.safetensors`, `tokenizer.json`, `provenance.json` and, written
last, `bundle.json` with the sha256 of each: without it a folder is not a bundle, and a byte that differs is found on
loading. There is no pickle in it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors.torch import load, save
from torch import Tensor

from blip3o.config.base import Frozen
from blip3o.config.model import ModelConfig
from blip3o.config.recipe import TemplateConfig
from blip3o.data import storage
from blip3o.data.templates import ChatTemplate
from blip3o.data.tokenizer import IMAGE_PAD, ChatTokenizer
from blip3o.errors import BundleError, StorageError
from blip3o.inference import DEFAULT_WIDTH, Pipeline
from blip3o.model.unified import PARTS as MODEL_PARTS
from blip3o.model.unified import UnifiedModel

PARTS = tuple(part for part in MODEL_PARTS if part != "contrastive")
FILES = ("config.json", "model.safetensors", "tokenizer.json", "provenance.json")
SEAL = "bundle.json"
FORMAT = "blip3o-bundle-1"


class BundleConfig(Frozen):
    """Everything but weights and tokens that inference needs."""

    format: str = Field(default=FORMAT, description="layout of this folder")
    model: ModelConfig = Field(description="sizes of every part, and the sampler's defaults")
    template: TemplateConfig = Field(description="fixed words of prompts")
    max_length: int = Field(gt=0, description="token positions to which every prompt is padded")


def write_bundle(
    uri: str,
    *,
    config: BundleConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: ChatTokenizer,
    provenance: Mapping[str, Any],
) -> None:
    """Writes a bundle, seals it, loads it back and compares every tensor.

    Raises `BundleError` if a part lacks weights, or if what was read back differs.
    """
    model = build_model(config, tokenizer)
    needed = dict(model.named_parameters())
    missing = sorted(set(needed) - set(tensors))
    if missing:
        raise BundleError(
            f"{uri}: {len(missing)} tensors have no weights, e.g. {missing[0]}: export all trained stages"
        )
    weights = {name: tensors[name].detach().cpu().contiguous() for name in needed}
    files = {
        "config.json": config.model_dump_json(indent=1).encode(),
        "model.safetensors": save(weights),
        "tokenizer.json": tokenizer.to_bytes(),
        "provenance.json": json.dumps(provenance, indent=1).encode(),
    }
    for name, data in files.items():
        storage.write_bytes(storage.join(uri, name), data)
    seal = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    storage.write_bytes(storage.join(uri, SEAL), json.dumps(seal, indent=1).encode())
    _verify(uri, weights)


def _verify(uri: str, weights: Mapping[str, Tensor]) -> None:
    read = dict(load_pipeline(uri).model.named_parameters())
    for name, tensor in weights.items():
        if not torch.equal(read[name].cpu(), tensor):
            raise BundleError(f"{uri}: {name} reads back other than it was written: export again")


def build_model(config: BundleConfig, tokenizer: ChatTokenizer) -> UnifiedModel:
    """The inference parts of the model, with no weights yet."""
    return UnifiedModel(
        config.model, image_token_id=tokenizer.ids[IMAGE_PAD], parts=PARTS, max_length=config.max_length
    )


def _read_sealed(uri: str) -> dict[str, bytes]:
    location = storage.join(uri, SEAL)
    if not storage.exists(location):
        raise BundleError(f"{uri} is not a bundle (no {SEAL}): give the folder that `python -m jobs.export` wrote")
    try:
        seal = json.loads(storage.read_bytes(location))
        sums = {name: seal[name] for name in FILES}
        files = {name: storage.read_bytes(storage.join(uri, name)) for name in FILES}
    except (StorageError, ValueError, TypeError, KeyError) as error:  # missing files, and a seal that is not one
        raise BundleError(f"{uri}: the bundle is incomplete ({error}): export it again") from error
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != sums[name]:
            raise BundleError(f"{uri}: {name} is not what was exported (its sha256 differs): export it again")
    return files


def _fill(model: UnifiedModel, tensors: Mapping[str, Tensor], uri: str) -> None:
    """Copies weights into every parameter. Raises `BundleError` if one is lacking or of another shape."""
    for name, parameter in model.named_parameters():
        if name not in tensors or tensors[name].shape != parameter.shape:
            raise BundleError(f"{uri}: model.safetensors does not fit config.json at {name}: export it again")
    model.load_state_dict(tensors, strict=False)


def load_pipeline(uri: str, *, device: torch.device | None = None, width: int = DEFAULT_WIDTH) -> Pipeline:
    """Loads a bundle and checks every byte.

    Raises `BundleError` if the folder is not a bundle, is incomplete, damaged, or of another format.
    """
    files = _read_sealed(uri)
    try:
        config = BundleConfig.model_validate_json(files["config.json"])
    except ValidationError as error:
        raise BundleError(
            f"{uri}: config.json is not that of a {FORMAT}: {' '.join(str(error).split())[:200]}"
        ) from error
    if config.format != FORMAT:
        raise BundleError(f"{uri} has format '{config.format}', this version reads {FORMAT}")
    tokenizer = ChatTokenizer.from_bytes(files["tokenizer.json"])
    model = build_model(config, tokenizer)
    _fill(model, load(files["model.safetensors"]), uri)
    device = device or torch.device("cpu")
    words = config.template
    return Pipeline(
        model=model.eval().requires_grad_(requires_grad=False).to(device),
        tokenizer=tokenizer,
        template=ChatTemplate(
            system=words.system, instruction=words.instruction, image_tokens=config.model.backbone.image_tokens
        ),
        max_length=config.max_length,
        device=device,
        width=width,
    )
