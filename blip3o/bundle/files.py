"""The bundle: a folder that serving needs and nothing beside it.

It holds `config.json` (format, model, template), `model.safetensors`, `tokenizer.json`, `provenance.json` and, written
last, `bundle.json` with the sha256 of each: without it a folder is not a bundle, and a byte that differs is found on
loading. There is no pickle in it. Weights are read one tensor at a time into the model, which is the only whole copy.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors.torch import save
from torch import Tensor

from blip3o import storage
from blip3o.config.base import Frozen
from blip3o.config.model import ModelConfig
from blip3o.config.recipe import TemplateConfig
from blip3o.data.text.templates import ChatTemplate
from blip3o.data.text.tokenizer import IMAGE_PAD, ChatTokenizer
from blip3o.errors import BundleError, StorageError
from blip3o.inference import DEFAULT_WIDTH, Pipeline
from blip3o.model.unfilled import place, shared_names, unfilled
from blip3o.model.unified import PARTS as MODEL_PARTS
from blip3o.model.unified import UnifiedModel
from blip3o.storage.magic import SNIFFED_BYTES, recognise
from blip3o.weights.safetensors_header import ForeignFileError, require_readable
from blip3o.weights.safetensors_stream import read_in_order

PARTS = tuple(part for part in MODEL_PARTS if part != "contrastive")
WEIGHTS = "model.safetensors"
TEXTS = ("config.json", "tokenizer.json", "provenance.json")
FILES = (*TEXTS, WEIGHTS)
SEAL = "bundle.json"
FORMAT = "blip3o-bundle-1"


class BundleConfig(Frozen):
    """Everything but weights and tokens that inference needs."""

    format: str = Field(default=FORMAT, description="layout of this folder")
    model: ModelConfig = Field(description="sizes of every part, and the sampler's defaults")
    template: TemplateConfig = Field(description="fixed words of prompts")
    max_length: int = Field(gt=0, description="token positions to which every prompt is padded")
    parts: tuple[str, ...] = Field(
        default=PARTS, description="parts of the model whose weights are here; a released one may lack its decoder"
    )


def write_bundle(
    uri: str,
    *,
    config: BundleConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: ChatTokenizer,
    provenance: Mapping[str, Any],
) -> None:
    """Writes a bundle, seals it, loads it back and compares every tensor.

    Raises `BundleError` if a part lacks weights or has other sizes, or if what was read back differs.
    """
    with unfilled():
        model = build_model(config, tokenizer)
    needed = dict(model.named_parameters())
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
    files = {
        "config.json": config.model_dump_json(indent=1).encode(),
        WEIGHTS: save(weights),
        "tokenizer.json": tokenizer.to_bytes(),
        "provenance.json": json.dumps(provenance, indent=1).encode(),
    }
    for name, data in files.items():
        storage.write_bytes(storage.join(uri, name), data)
    write_seal(uri, {name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    _verify(uri, weights)


def _verify(uri: str, weights: Mapping[str, Tensor]) -> None:
    read = dict(load_pipeline(uri).model.named_parameters())
    for name, tensor in weights.items():
        if not torch.equal(read[name].cpu(), tensor.to(read[name].dtype)):
            raise BundleError(f"{uri}: {name} reads back other than it was written: export again")


def write_seal(uri: str, sums: Mapping[str, str]) -> None:
    """Makes a bundle of a folder: the sha256 of each of its files, by name. Written after all of them."""
    storage.write_bytes(storage.join(uri, SEAL), json.dumps(sums, indent=1).encode())


def build_model(config: BundleConfig, tokenizer: ChatTokenizer) -> UnifiedModel:
    """The inference parts of the model, with no weights yet."""
    return UnifiedModel(
        config.model, image_token_id=tokenizer.ids[IMAGE_PAD], parts=config.parts, max_length=config.max_length
    )


@dataclass(frozen=True, kw_only=True)
class SealedBundle:
    """A bundle's small files, checked, and the sums of all its files."""

    uri: str
    config: BundleConfig
    tokenizer: ChatTokenizer
    provenance: dict[str, Any]
    sums: dict[str, str]

    def read(self, name: str) -> bytes:
        """Another sealed file. Raises `BundleError` if it is missing or not what was written."""
        return _checked(self.uri, name, self.sums[name])


def _checked(uri: str, name: str, expected: str) -> bytes:
    try:
        data = storage.read_bytes(storage.join(uri, name))
    except StorageError as error:
        raise _incomplete(uri, error) from error
    if hashlib.sha256(data).hexdigest() != expected:
        found = recognise(data[:SNIFFED_BYTES], size=len(data), is_text=True)
        raise _altered(uri, name) if found is None else ForeignFileError(f"{uri}: {name} {found}")
    return data


def _incomplete(uri: str, error: Exception) -> BundleError:
    return BundleError(f"{uri}: the bundle is incomplete ({error}): export it again")


def _altered(uri: str, name: str) -> BundleError:
    return BundleError(f"{uri}: {name} is not what was exported (its sha256 differs): export it again")


def open_bundle(uri: str) -> SealedBundle:
    """Reads and checks all of a bundle but its weights.

    Raises `BundleError` if the folder is not a bundle, is incomplete, damaged, or of another format.
    """
    location = storage.join(storage.normalize(uri), SEAL)
    if not storage.exists(location):
        raise BundleError(f"{uri} is not a bundle (no {SEAL}): give the folder that `python -m jobs.export` wrote")
    try:
        sums = dict(json.loads(storage.read_bytes(location)))
        needed = {name: sums[name] for name in FILES}
        storage.stat(storage.join(uri, WEIGHTS))
    except (StorageError, ValueError, TypeError, KeyError) as error:  # missing files, and a seal that is not one
        raise _incomplete(uri, error) from error
    texts = {name: _checked(uri, name, needed[name]) for name in TEXTS}
    try:
        config = BundleConfig.model_validate_json(texts["config.json"])
    except ValidationError as error:
        raise BundleError(
            f"{uri}: config.json is not that of a {FORMAT}: {' '.join(str(error).split())[:200]}"
        ) from error
    if config.format != FORMAT:
        raise BundleError(f"{uri} has format '{config.format}', this version reads {FORMAT}")
    return SealedBundle(
        uri=uri,
        config=config,
        tokenizer=ChatTokenizer.from_bytes(texts["tokenizer.json"]),
        provenance=json.loads(texts["provenance.json"]),
        sums=sums,
    )


def _fill(model: UnifiedModel, bundle: SealedBundle, dtype: torch.dtype) -> None:
    """Gives every parameter its weights, converted to `dtype`.

    Raises `BundleError` if the file is not what was written, or if a tensor is lacking, of another shape, or stored in
    a type that is not read.
    """
    location, digest = storage.join(bundle.uri, WEIGHTS), hashlib.sha256()
    names = shared_names(model)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    left = set(names)
    try:
        for entry, tensor in read_in_order(location, digest):
            if shapes.get(entry.name) == entry.shape:
                require_readable(entry)
                place(model, names[entry.name], tensor.to(dtype))
                left.remove(entry.name)
    except ForeignFileError:
        raise
    except BundleError as error:  # not even a file of tensors
        raise _altered(bundle.uri, WEIGHTS) from error
    except StorageError as error:
        raise _incomplete(bundle.uri, error) from error
    if digest.hexdigest() != bundle.sums[WEIGHTS]:
        raise _altered(bundle.uri, WEIGHTS)
    if left:
        raise BundleError(f"{bundle.uri}: {WEIGHTS} does not fit config.json at {min(left)}: export it again")


def load_pipeline(
    uri: str, *, device: torch.device | None = None, width: int = DEFAULT_WIDTH, dtype: torch.dtype = torch.float32
) -> Pipeline:
    """Loads a bundle and checks every byte. Weights are converted to `dtype`, in which the model then computes.

    Raises `BundleError` if the folder is not a bundle, is incomplete, damaged, or of another format.
    """
    bundle = open_bundle(uri)
    config = bundle.config
    with unfilled():
        model = build_model(config, bundle.tokenizer)
    _fill(model, bundle, dtype)
    device = device or torch.device("cpu")
    words = config.template
    return Pipeline(
        model=model.eval().requires_grad_(requires_grad=False).to(device),
        tokenizer=bundle.tokenizer,
        template=ChatTemplate(
            system=words.system,
            instruction=words.instruction,
            image_tokens=config.model.backbone.image_tokens,
            style=words.style,
        ),
        max_length=config.max_length,
        device=device,
        width=width,
    )
