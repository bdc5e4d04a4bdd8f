"""A bundle written in the layout of the released BLIP3o-Model checkpoints.

A bundle that came from a released folder gives back that folder: the same tensors under the same names in the same
shards, and its small files; what was ignored on the way in is not in it. A model that was trained here gets the names
of the published checkpoints, shards by size and a config.json; upstream's own loader also wants its slow tokenizer's
files, which are not written.
"""

import json
from typing import Any

from blip3o import storage
from blip3o.bundle.layout import WEIGHTS
from blip3o.bundle.reading import SealedBundle, build_model, open_bundle
from blip3o.config.decoder import SdxlDecoderConfig
from blip3o.convert.from_released import CARRIED, INDEX
from blip3o.convert.keys import DECODER, KeyReport, to_released
from blip3o.convert.sizes import config_json
from blip3o.model.empty_weights import init_empty_weights
from blip3o.weights.safetensors_header import StoredTensor, require_readable
from blip3o.weights.safetensors_stream import Slot, read_entries, write_tensors

SHARD_BYTES = 5 * 10**9  # the default of transformers
REST = "model-rest.safetensors"
DECODER_WEIGHTS = "diffusion_pytorch_model.safetensors"
TORCH_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def export_released(source: str, out: str, *, shard_bytes: int = SHARD_BYTES) -> KeyReport:
    """Writes a bundle as a released folder. The report's `ignored` are parts that the layout has no place for.

    The index is written last: without it the folder is incomplete. Raises `BundleError` if `source` is no bundle, or of
    a model that upstream's code does not know.
    """
    bundle = open_bundle(source)
    entries = read_entries(storage.join(source, WEIGHTS))
    names = {entry.name: _name(bundle, entry.name) for entry in entries}
    names |= {here: theirs for theirs, here in _origin(bundle).get("keys", {}).get("mapped", {}).items()}
    slots = {theirs: _slot(theirs, entry) for entry in entries if (theirs := names[entry.name]) is not None}
    files = _small_files(bundle, entries[0])
    shards = _shards(bundle, slots, shard_bytes)
    for name, data in files.items():
        storage.write_bytes(storage.join(out, name), data)
    for file, members in shards.items():
        write_tensors(storage.join(out, file), [slots[name] for name in members], metadata={"format": "pt"})
    if WEIGHTS not in shards or REST in shards:  # a single file of that name holds everything and needs no index
        storage.write_bytes(storage.join(out, INDEX), _index(slots, shards))
    return KeyReport(
        mapped={theirs: entry.name for entry in entries if (theirs := names[entry.name]) is not None},
        ignored={here: "the released layout has no such part" for here, theirs in names.items() if theirs is None},
        unknown=(),
        missing=(),
    )


def _origin(bundle: SealedBundle) -> dict[str, Any]:
    """What the import recorded; empty for a model that was trained here."""
    return bundle.provenance.get("released", {})


def _name(bundle: SealedBundle, here: str) -> str | None:
    # A decoder of another kind may also have a U-Net, which the released layout does not have.
    foreign = here.startswith("decoder.") and not _has_released_decoder(bundle)
    return None if foreign else to_released(here)


def _has_released_decoder(bundle: SealedBundle) -> bool:
    """Whether the model's decoder is of the one kind that the released layout has a place for."""
    return isinstance(bundle.config.model.decoder, SdxlDecoderConfig)


def _slot(released: str, entry: StoredTensor) -> Slot:
    """The tensor under the name it has inside its file; the queries get their leading 1 back."""
    inside = released.rpartition("/")[2] if released.startswith(DECODER) else released
    shape = (1, *entry.shape) if entry.name == "queries" else entry.shape
    return Slot(name=inside, shape=shape, source=entry)


def _small_files(bundle: SealedBundle, first: StoredTensor) -> dict[str, bytes]:
    carried = {name.removeprefix(f"{CARRIED}/"): name for name in bundle.checksums if name.startswith(f"{CARRIED}/")}
    if carried:
        return {name: bundle.read(kept) for name, kept in carried.items()}
    config = config_json(bundle.config.model, max_length=bundle.config.max_length)
    require_readable(first)
    config["torch_dtype"] = TORCH_DTYPES[first.dtype]
    files = {"config.json": json.dumps(config, indent=2).encode(), "tokenizer.json": bundle.tokenizer.to_bytes()}
    if "decoder" not in bundle.config.parts or not _has_released_decoder(bundle):
        return files
    with init_empty_weights():
        decoder: Any = build_model(bundle.config, bundle.tokenizer).decoder
    unet, vae = f"{DECODER}unet/config.json", f"{DECODER}vae/config.json"
    return files | {unet: decoder.unet.to_json_string().encode(), vae: decoder.vae.to_json_string().encode()}


def _shards(bundle: SealedBundle, slots: dict[str, Slot], shard_bytes: int) -> dict[str, list[str]]:
    """Names of tensors by the file in which they are to be; those of the origin where there was one."""
    known: dict[str, list[str]] = _origin(bundle).get("shards", {})
    placed = {name for members in known.values() for name in members}
    rest = [name for name in sorted(slots) if name not in placed]
    shards = {file: [name for name in members if name in slots] for file, members in known.items()}
    for part in ("unet", "vae"):
        members = [name for name in rest if name.startswith(f"{DECODER}{part}/")]
        if members:
            shards[f"{DECODER}{part}/{DECODER_WEIGHTS}"] = members
    main = {name: slots[name] for name in rest if not name.startswith(DECODER)}
    if known and main:  # a separate tower joins the other shards, which stay unchanged
        return shards | {REST: list(main)}
    return shards | _by_size(main, shard_bytes)


def _by_size(slots: dict[str, Slot], shard_bytes: int) -> dict[str, list[str]]:
    groups: list[list[str]] = []
    room = 0
    for name, slot in slots.items():
        if slot.size > room or not groups:
            groups.append([])
            room = shard_bytes
        groups[-1].append(name)
        room -= slot.size
    count = len(groups)
    return {f"model-{number:05d}-of-{count:05d}.safetensors": group for number, group in enumerate(groups, 1)}


def _index(slots: dict[str, Slot], shards: dict[str, list[str]]) -> bytes:
    weight_map = {name: file for file, members in shards.items() if not file.startswith(DECODER) for name in members}
    total = sum(slots[name].size for name in weight_map)
    index: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
