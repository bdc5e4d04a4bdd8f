"""Released BLIP3o-Model-4B/-8B folders into bundles and back, tensor by tensor.

A released folder holds safetensors shards with their index (or one file), config.json, tokenizer files and, if it was
fetched whole, `diffusion-decoder/` with U-Net and VAE. The EVA-CLIP tower is in the shards or published separately.
Tensors are copied as bytes in pieces, so that neither direction holds more than a few megabytes of a model; small files
are carried in the bundle under `released/` and written back as they were. What became of every tensor is reported.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from blip3o import storage
from blip3o.bundle.layout import PARTS, WEIGHTS, BundleConfig
from blip3o.bundle.reading import build_model
from blip3o.bundle.writing import write_seal
from blip3o.config.recipe import TemplateConfig
from blip3o.convert.keys import (
    DECODER,
    EMBEDDING_HERE,
    HEAD,
    QUERIES,
    TOWER,
    KeyReport,
    report_keys,
    to_here,
    tower_names,
)
from blip3o.convert.sizes import VISION_SIZE, decoder_config, model_config
from blip3o.convert.tokenizer import read_tokenizer
from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.errors import BundleError, one_line
from blip3o.model.empty_weights import init_empty_weights
from blip3o.weights.folders import SUFFIX, is_hidden, other_weights, read_index, read_json
from blip3o.weights.prefixes import explain_missing, unwrap
from blip3o.weights.safetensors_header import StoredTensor, require_readable
from blip3o.weights.safetensors_stream import Slot, read_entries, read_in_order, same_bytes, write_tensors

logger = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
CARRIED = "released"  # folder of a bundle for the small files of its origin
SMALL_SUFFIXES = (".json", ".txt", ".py", ".jinja", ".md", ".model")
MAX_SMALL_BYTES = 32 * 2**20
DEFAULT_LENGTH = 512


@dataclass(frozen=True, kw_only=True)
class ReleasedFolder:
    """What a folder holds: small files and tensors by name, and the names of the files that are left out.

    Tensors of the decoder are named `diffusion-decoder/unet/…` and `diffusion-decoder/vae/…`.
    """

    uri: str
    files: dict[str, bytes]
    tensors: dict[str, StoredTensor]
    left_out: tuple[str, ...]

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file. Raises `BundleError` if it is missing or is none."""
        return read_json(f"{self.uri}: {name}", self.files.get(name))

    def shards(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Which of these tensors are in which file of the folder; those of a separate tower are in none."""
        shards: dict[str, list[str]] = {}
        for name in names:
            file = self.tensors[name].uri.removeprefix(f"{self.uri}/")
            if file != self.tensors[name].uri:
                shards.setdefault(file, []).append(name)
        return shards


def read_folder(uri: str, *, tower: str | None = None) -> ReleasedFolder:
    """Lists a released folder, reading its small files and the headers of its shards.

    `tower` is the safetensors file of a separately published EVA-CLIP tower. Raises `BundleError` if there are no
    weights, if a shard that the index names or one of its tensors is missing, or if two files hold the same tensor.
    """
    uri = storage.normalize(uri)
    found = {file.uri.removeprefix(f"{uri}/"): file for file in storage.list_files(uri)}
    small = {n for n, file in found.items() if n.endswith(SMALL_SUFFIXES) and file.size <= MAX_SMALL_BYTES}
    files = {name: storage.read_bytes(found[name].uri) for name in sorted(small)}
    weights = [n for n in found if n.endswith(SUFFIX) and not is_hidden(n) and _prefix(n) is not None]
    tensors: dict[str, StoredTensor] = {}
    for name in weights:
        _add(tensors, {f"{_prefix(name)}{e.name}": e for e in read_entries(found[name].uri)}, uri)
    _check_shards(uri, files, weights, tensors)
    tensors = _unwrapped(uri, tensors)
    if tower is not None:
        entries = {entry.name: entry for entry in read_entries(tower)}
        _add(tensors, {theirs: entries[own] for own, theirs in tower_names(entries).items()}, tower)
    left_out = tuple(sorted(found.keys() - small - set(weights)))
    return ReleasedFolder(uri=uri, files=files, tensors=tensors, left_out=left_out)


def _prefix(name: str) -> str | None:
    """What the names of a weights file's tensors are prefixed with; None for a file of another kind."""
    if "/" not in name:
        return ""
    part = name.rpartition("/")[0]
    return f"{part}/" if part in (f"{DECODER}unet", f"{DECODER}vae") else None


def _add(tensors: dict[str, StoredTensor], more: dict[str, StoredTensor], source: str) -> None:
    twice = sorted(tensors.keys() & more.keys())
    if twice:
        raise BundleError(f"{source}: two files hold {twice[0]} ({len(twice)} such): keep one of them")
    tensors.update(more)


def _check_shards(uri: str, files: dict[str, bytes], weights: list[str], names: Collection[str]) -> None:
    if not any("/" not in name for name in names):
        raise BundleError(
            f"{uri} holds no safetensors weights: give the folder of a released checkpoint{other_weights(uri)}"
        )
    promised = read_index(f"{uri}: {INDEX}", files[INDEX]) if INDEX in files else {}
    missing = sorted(promised.keys() - set(names))
    if missing:
        file = promised[missing[0]]
        gone = "" if file in weights else f"; the folder has no {file}"
        raise BundleError(
            f"{uri}: {file} has no {missing[0]} ({len(missing)} tensors that the index names are missing{gone}): fetch "
            "it again"
        )


def _unwrapped(uri: str, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors by their published names, where the shards have all of them behind a wrapper's."""
    apart = {name: entry for name, entry in tensors.items() if "/" in name}
    found = unwrap(tensors.keys() - apart.keys(), [QUERIES])
    if found.blocked:
        raise BundleError(
            f"{uri} has {found.blocked}{QUERIES}, and other names do not begin with {found.blocked}: save the state "
            "dictionary of the model itself"
        )
    if not found.dropped:
        return tensors
    logger.info("%s: names are read without %s", uri, found.dropped)
    return {clean: tensors[name] for name, clean in found.names.items()} | apart


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a released folder becomes a bundle."""

    folder: ReleasedFolder
    config: BundleConfig
    tokenizer: ChatTokenizer
    report: KeyReport

    @property
    def slots(self) -> list[Slot]:
        """What is written, in the order of the files that it is read from. The queries lose their leading 1."""
        tensors = self.folder.tensors
        stored = sorted(self.report.mapped, key=lambda name: (tensors[name].uri, tensors[name].offset))
        here = {name: self.report.mapped[name] for name in stored}
        return [Slot(name=here[n], shape=_shape(here[n], tensors[n]), source=tensors[n]) for n in stored]


def _shape(here: str, source: StoredTensor) -> tuple[int, ...]:
    return source.shape[-2:] if here == "queries" else source.shape


def plan_import(folder: ReleasedFolder, *, vision_size: int = VISION_SIZE) -> Plan:
    """Decides what every tensor becomes, from names and shapes only.

    Raises `BundleError` if weights are missing, or if a shape differs from what the configs imply.
    """
    raw = folder.json("config.json")
    try:
        tied = _is_tied(folder, raw)
        config = _bundle_config(folder, raw, tied=tied, vision_size=vision_size)
    # What config.json and shapes can hold that no model has: other types, other dimensions, zeros.
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise BundleError(f"{folder.uri}: config.json and weights make no model ({one_line(error)})") from error
    tokenizer = read_tokenizer(folder.files, source=folder.uri)
    with init_empty_weights():
        model = build_model(config, tokenizer)
    needed = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    report = report_keys(folder.tensors, needed, tied=tied)
    _check_plan(folder, report, needed, len(tokenizer))
    return Plan(folder=folder, config=config, tokenizer=tokenizer, report=report)


def _bundle_config(folder: ReleasedFolder, raw: dict[str, Any], *, tied: bool, vision_size: int) -> BundleConfig:
    shapes = {to_here(name) or name: entry.shape for name, entry in folder.tensors.items()}
    has_decoder = any(name.startswith(DECODER) for name in folder.tensors)
    decoder = None
    if has_decoder:
        decoder = decoder_config(folder.json(f"{DECODER}unet/config.json"), folder.json(f"{DECODER}vae/config.json"))
    absent = {"encoder": any(name.startswith(TOWER) for name in folder.tensors), "decoder": has_decoder}
    return BundleConfig(
        model=model_config(raw, shapes, decoder, tied=tied, vision_size=vision_size),
        template=TemplateConfig(),
        max_length=raw.get("tokenizer_model_max_length") or DEFAULT_LENGTH,
        parts=tuple(part for part in PARTS if absent.get(part, True)),
    )


def _is_tied(folder: ReleasedFolder, raw: dict[str, Any]) -> bool:
    """Whether head and embedding are tied: the config says so, and the folder has no other head."""
    said = bool(raw.get("tie_word_embeddings", (raw.get("text_config") or {}).get("tie_word_embeddings", False)))
    embedding = next((name for name in folder.tensors if to_here(name) == EMBEDDING_HERE), None)
    if not said or HEAD not in folder.tensors or embedding is None:
        return said
    return same_bytes(folder.tensors[HEAD], folder.tensors[embedding])


def _check_plan(folder: ReleasedFolder, report: KeyReport, needed: dict[str, tuple[int, ...]], tokens: int) -> None:
    if report.missing:
        raise BundleError(
            f"{folder.uri}: {len(report.missing)} tensors of the model are missing, e.g. "
            f"{explain_missing(report.missing, report.unknown)}: fetch all shards"
        )
    twice = [name for name, count in Counter(report.mapped.values()).items() if count > 1]
    if twice:
        raise BundleError(f"{folder.uri}: two tensors are {twice[0]}: keep the shards of one version")
    for released, here in report.mapped.items():
        require_readable(folder.tensors[released])
        shape = _shape(here, folder.tensors[released])
        if shape != needed[here]:
            raise BundleError(f"{folder.uri}: {released} has shape {shape}, config.json makes it {needed[here]}")
    rows = needed[EMBEDDING_HERE][0]
    if tokens > rows:
        raise BundleError(f"{folder.uri}: the tokenizer has {tokens} tokens, the embedding {rows} rows")


def import_released(source: str, out: str, *, tower: str | None = None, vision_size: int = VISION_SIZE) -> KeyReport:
    """Converts a released folder to a bundle, and verifies the bundle by reading it back.

    `tower`: the safetensors file of a separate EVA-CLIP tower; without one, and with none among the shards, the
    bundle cannot encode images, but it generates and chats. Raises `BundleError` as `read_folder` and `plan_import` do.
    """
    plan = plan_import(read_folder(source, tower=tower), vision_size=vision_size)
    sums = {WEIGHTS: write_tensors(storage.join(out, WEIGHTS), plan.slots)}
    texts = {
        "config.json": plan.config.model_dump_json(indent=1).encode(),
        "tokenizer.json": plan.tokenizer.to_bytes(),
        "provenance.json": json.dumps(_provenance(plan), indent=1).encode(),
        **{f"{CARRIED}/{name}": data for name, data in plan.folder.files.items() if name != INDEX},
    }
    for name, data in texts.items():
        storage.write_bytes(storage.join(out, name), data)
        sums[name] = hashlib.sha256(data).hexdigest()
    _check_written(out, plan.slots, sums[WEIGHTS])
    write_seal(out, sums)
    return plan.report


def _provenance(plan: Plan) -> dict[str, Any]:
    return {
        "released": {
            "keys": asdict(plan.report),
            "shards": plan.folder.shards(plan.report.mapped),
            "left_out": plan.folder.left_out,
        }
    }


def _check_written(out: str, slots: Sequence[Slot], expected: str) -> None:
    digest = hashlib.sha256()
    location = storage.join(out, WEIGHTS)
    read = [(entry.name, entry.dtype, entry.shape) for entry, _ in read_in_order(location, digest)]
    written = [(slot.name, slot.dtype, slot.shape) for slot in slots]
    if digest.hexdigest() != expected or read != written:
        raise BundleError(f"{location} reads back other than it was written: convert again")
