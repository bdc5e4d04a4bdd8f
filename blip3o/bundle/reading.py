"""Reading a bundle, with every byte checked against the seal.

Weights are read straight to their dtype and device, so there is never a second copy of them in memory.
"""

import hashlib
import json
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, get_args

import torch
from pydantic import ValidationError

from blip3o import storage
from blip3o.bundle.layout import FILES, FORMAT, SEAL, TEXTS, WEIGHTS, BundleConfig
from blip3o.data.text.templates import ChatTemplate
from blip3o.data.text.tokenizer import IMAGE_PAD, ChatTokenizer
from blip3o.device import Execution
from blip3o.errors import BundleError, ConfigError, StorageError, one_line
from blip3o.inference.arguments import check_positive_int, type_of
from blip3o.inference.execution import set_execution
from blip3o.inference.pipeline import DEFAULT_BATCH_SIZE, Blip3oPipeline
from blip3o.inference.precision import Precision, dtype_of, resolve_precision
from blip3o.model.empty_weights import init_empty_weights, set_parameter, stored_tensors, tied_names
from blip3o.model.unified import UnifiedModel
from blip3o.storage.magic import SNIFFED_BYTES, recognise
from blip3o.weights.safetensors_header import ForeignFileError, StoredTensor
from blip3o.weights.safetensors_stream import load_file


def build_model(
    config: BundleConfig, tokenizer: ChatTokenizer, *, parts: Collection[str] | None = None
) -> UnifiedModel:
    """The model's parts for inference, or those of `parts` among them, without weights."""
    return UnifiedModel(
        config.model,
        image_token_id=tokenizer.ids[IMAGE_PAD],
        parts=config.parts if parts is None else set(config.parts) & set(parts),
        max_length=config.max_length,
    )


@dataclass(frozen=True, kw_only=True)
class SealedBundle:
    """A bundle's small files, verified, and the checksums of all its files by name."""

    uri: str
    config: BundleConfig
    tokenizer: ChatTokenizer
    provenance: dict[str, Any]
    checksums: dict[str, str]
    sha256: str  # of the seal, which has the checksums of all files

    def read(self, name: str) -> bytes:
        """Reads another sealed file. Raises `BundleError` if it is missing or was changed."""
        return _checked(self.uri, name, self.checksums[name])

    def has_sealed_weights(self) -> bool:
        """Whether the file of weights is the one that was sealed. Reads all of it. Raises `StorageError`."""
        digest = hashlib.sha256()
        with storage.open_ranges(storage.join(self.uri, WEIGHTS)) as file:
            for piece in file.pieces():
                digest.update(piece)
        return digest.hexdigest() == self.checksums[WEIGHTS]


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
    """Reads and verifies a bundle except for its weights.

    Raises `BundleError` if the folder is not a bundle, is incomplete, damaged, or of another format.
    """
    location = storage.join(storage.normalize(uri), SEAL)
    if not storage.exists(location):
        raise BundleError(f"{uri} is not a bundle (no {SEAL}): give the folder that `python -m jobs.export` wrote")
    try:
        seal = storage.read_bytes(location)
        checksums = dict(json.loads(seal))
        needed = {name: checksums[name] for name in FILES}
        storage.stat(storage.join(uri, WEIGHTS))
    except (StorageError, ValueError, TypeError, KeyError) as error:  # missing files, and a seal that is not one
        raise _incomplete(uri, error) from error
    texts = {name: _checked(uri, name, needed[name]) for name in TEXTS}
    return SealedBundle(
        uri=uri,
        config=_config(uri, texts["config.json"]),
        tokenizer=ChatTokenizer.from_bytes(texts["tokenizer.json"]),
        provenance=json.loads(texts["provenance.json"]),
        checksums=checksums,
        sha256=hashlib.sha256(seal).hexdigest(),
    )


def _config(uri: str, text: bytes) -> BundleConfig:
    """Parses config.json. Raises `BundleError` with the format's name for another format, before any field's error."""
    with suppress(ValueError, AttributeError):  # no JSON, or no object: what is wrong is said below
        found = json.loads(text).get("format", FORMAT)
        if found != FORMAT:
            raise BundleError(f"{uri} has format '{found}', this version reads {FORMAT}: export it again")
    try:
        return BundleConfig.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(f"{uri}: config.json is not that of a {FORMAT}: {one_line(error)}") from error


def _load_weights(model: UnifiedModel, bundle: SealedBundle, dtype: torch.dtype, device: torch.device) -> None:
    """Sets every parameter of the model, converted to `dtype` on `device`, and fills its buffers where they are.

    Raises `BundleError` if the file was changed, or if a tensor is missing, has another shape, or has an unsupported
    type.
    """
    location, digest = storage.join(bundle.uri, WEIGHTS), hashlib.sha256()
    names, own = tied_names(model), stored_tensors(model)
    left = set(own)

    def place(entry: StoredTensor) -> torch.Tensor | None:
        if entry.name not in own or own[entry.name].shape != entry.shape:
            return None
        left.remove(entry.name)
        if entry.name not in names:
            return own[entry.name]
        tensor = torch.empty(entry.shape, dtype=dtype, device=device)
        set_parameter(model, names[entry.name], tensor)
        return tensor

    try:
        read = load_file(location, place, digest)
    except ForeignFileError:
        raise
    except BundleError as error:  # not even a file of tensors
        raise _altered(bundle.uri, WEIGHTS) from error
    except StorageError as error:
        raise _incomplete(bundle.uri, error) from error
    if read and digest.hexdigest() != bundle.checksums[WEIGHTS]:
        raise _altered(bundle.uri, WEIGHTS)
    if left:
        raise BundleError(f"{bundle.uri}: {WEIGHTS} does not fit config.json at {min(left)}: export it again")


def load_bundle(
    uri: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    decode_batch_size: int | None = None,
    precision: Precision = "auto",
    execution: Execution = "eager",
    parts: Collection[str] | None = None,
) -> Blip3oPipeline:
    """Loads a bundle from a folder or an object store, and verifies every byte.

    >>> pipeline = blip3o.load("runs/demo/bundle")
    >>> image = pipeline.generate("a red circle", seed=1)[0]
    >>> pipeline.chat("What color is the circle?", image=image)

    The model computes on `device` (by default the CPU) in `precision`: `fp32`, `bf16`, or by default `auto`, which is
    bf16 on a GPU and fp32 on the CPU. It always runs batches of `batch_size` rows, and decodes `decode_batch_size`
    images at a time (by default 1; `batch_size` for the pixel decoder), so images equal those of a server with the same
    sizes. `execution` says how the denoiser runs: `eager`, `compile` (torch.compile) or `graph` (recorded once and
    replayed, on a GPU). With `parts` (see `blip3o.bundle.layout.PARTS`), only these are loaded, for a process that does
    one step of the work.

    Raises `BundleError` if the folder is not a bundle, is incomplete, damaged, or of another format, `ConfigError` if
    the device does not exist, or cannot run in this precision or execution.
    """
    _check_sizes(batch_size, decode_batch_size)
    if execution not in get_args(Execution):
        raise ConfigError(f"execution '{execution}' is unknown: use {', '.join(get_args(Execution))}")
    if not isinstance(uri, str | os.PathLike):
        raise BundleError(f"the bundle is {type_of(uri)}: give its folder or its URI")
    uri = os.fsdecode(uri)
    where = _device(device)
    dtype = dtype_of(resolve_precision(precision, gpu=where.type != "cpu"))
    bundle = open_bundle(uri)
    config = bundle.config
    with init_empty_weights():
        model = build_model(config, bundle.tokenizer, parts=parts)
    _load_weights(model, bundle, dtype, where)
    model = model.eval().requires_grad_(requires_grad=False).to(where)
    if model.generates:
        set_execution(model, execution, batch_size=batch_size, device=where)
    template = config.template
    return Blip3oPipeline(
        model=model,
        tokenizer=bundle.tokenizer,
        template=ChatTemplate(
            system=template.system,
            instruction=template.instruction,
            image_tokens=config.model.backbone.image_tokens,
            style=template.style,
        ),
        max_length=config.max_length,
        device=where,
        batch_size=batch_size,
        decode_batch_size=decode_batch_size,
        execution=execution,
        bundle_sha256=bundle.sha256,
    )


def _check_sizes(batch_size: int, decode_batch_size: int | None) -> None:
    check_positive_int("batch_size", batch_size)
    if decode_batch_size is not None:
        check_positive_int("decode_batch_size", decode_batch_size)


def _device(name: torch.device | str | None) -> torch.device:
    try:
        device = torch.device(name or "cpu")
        torch.empty(0, device=device)
    # AssertionError: a build of torch without that kind of device. TypeError: not the name of a device at all.
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(f"device '{name}' cannot be used ({one_line(error)}): leave it out for the CPU") from error
    return device
