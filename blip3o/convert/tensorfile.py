"""Safetensors files of any size as streams: heads are read alone, tensors one by one or in pieces.

So a model of many gigabytes passes through a few megabytes of memory, from and to any store. Bytes are passed on as
they are. (The format: a length, a JSON head with each tensor's type, shape and place, then the tensors.)
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from blip3o.data import storage
from blip3o.errors import BundleError

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK_BYTES = 16 * 2**20
MAX_HEAD_BYTES = 100_000_000  # as the safetensors library has it: a file that claims more is not one
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """Where a tensor lies: `size` bytes from `offset` in the file `uri`. `dtype` is the format's name for its type."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    uri: str
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """A tensor to be written: under which name and shape, and where its bytes are: in a file, or in memory."""

    name: str
    shape: tuple[int, ...]
    source: StoredTensor | Tensor

    @property
    def dtype(self) -> str:
        """The format's name for its type."""
        return CODES[self.source.dtype] if isinstance(self.source, Tensor) else self.source.dtype

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.source.nbytes if isinstance(self.source, Tensor) else self.source.size


def read_entries(uri: str) -> list[StoredTensor]:
    """The tensors of a file in the order of their bytes, from its head alone.

    Raises `StorageError` if it is missing, `BundleError` if it is no safetensors file.
    """
    with storage.open_ranges(uri) as file:
        return _read_head(uri, file)[1]


def same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors are equal in type, shape and every byte. Raises `StorageError` if one has gone."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with storage.open_ranges(one.uri) as first, storage.open_ranges(other.uri) as second:
        pairs = zip(_chunks(first, one), _chunks(second, other), strict=True)
        return all(mine == theirs for mine, theirs in pairs)


def read_in_order(uri: str, digest: "_Hash") -> Iterator[tuple[StoredTensor, Tensor]]:
    """All tensors of a file, one after another; `digest` has seen every byte of it when they are through.

    Raises as `read_entries` does.
    """
    with storage.open_ranges(uri) as file:
        head, entries = _read_head(uri, file)
        digest.update(head)
        for entry in entries:
            data = file.read(entry.offset, entry.size)
            digest.update(data)
            yield entry, _to_tensor(entry, data)


def write_tensors(uri: str, slots: Sequence[Slot], *, metadata: dict[str, str] | None = None) -> str:
    """Writes a file with these tensors in this order, copying their bytes in pieces. Returns its sha256.

    Raises `StorageError` if a source has gone or the store refuses.
    """
    digest = sha256()
    with storage.open_write(uri) as out:
        for data in _pieces(slots, metadata or {}):
            digest.update(data)
            out.write(data)
    return digest.hexdigest()


def _pieces(slots: Sequence[Slot], metadata: dict[str, str]) -> Iterator[bytes]:
    yield _head(slots, metadata)
    # Neighbours in one file are read through one handle.
    for uri, group in groupby((slot.source for slot in slots), key=_place):
        if uri is None:
            for tensor in group:
                yield from _memory_chunks(cast("Tensor", tensor))
            continue
        with storage.open_ranges(uri) as file:
            for entry in group:
                yield from _chunks(file, cast("StoredTensor", entry))


def _place(source: StoredTensor | Tensor) -> str | None:
    return None if isinstance(source, Tensor) else source.uri


def _memory_chunks(tensor: Tensor) -> Iterator[bytes]:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for piece in flat.split(CHUNK_BYTES) if flat.numel() else ():
        yield piece.numpy().tobytes()


def _chunks(file: storage.RangeReader, entry: StoredTensor) -> Iterator[bytes]:
    for done in range(0, entry.size, CHUNK_BYTES):
        yield file.read(entry.offset + done, min(CHUNK_BYTES, entry.size - done))


def _head(slots: Sequence[Slot], metadata: dict[str, str]) -> bytes:
    head: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for slot in slots:
        start, end = end, end + slot.size
        head[slot.name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": [start, end]}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_head(uri: str, file: storage.RangeReader) -> tuple[bytes, list[StoredTensor]]:
    length = int.from_bytes(file.read(0, 8), "little")
    if length > min(MAX_HEAD_BYTES, file.size - 8):
        raise BundleError(f"{uri} is no safetensors file (its head would be {length} bytes long): fetch it again")
    head = file.read(8, length)
    try:
        entries = sorted(_entries(uri, json.loads(head), data=8 + length), key=lambda entry: (entry.offset, entry.size))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"{uri} is no safetensors file ({error!r} in its head): fetch it again") from error
    end = 8 + length
    for entry in entries:
        if entry.offset != end or entry.size < 0:
            raise BundleError(f"{uri}: tensor {entry.name} does not begin where the one before ends: fetch it again")
        end += entry.size
    if end != file.size:
        raise BundleError(f"{uri} has {file.size} bytes, its head describes {end}: fetch it again")
    return length.to_bytes(8, "little") + head, entries


def _entries(uri: str, head: dict[str, Any], *, data: int) -> list[StoredTensor]:
    entries = []
    for name, about in head.items():
        if name == "__metadata__":
            continue
        begin, end = about["data_offsets"]
        shape = tuple(int(side) for side in about["shape"])
        entry = StoredTensor(
            name=name, dtype=about["dtype"], shape=shape, uri=uri, offset=data + begin, size=end - begin
        )
        if entry.size != DTYPES[entry.dtype].itemsize * torch.Size(shape).numel():
            raise ValueError(f"{name} of shape {shape}")
        entries.append(entry)
    return entries


def _to_tensor(entry: StoredTensor, data: bytes) -> Tensor:
    if not entry.size:
        return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    return torch.frombuffer(bytearray(data), dtype=DTYPES[entry.dtype]).view(entry.shape)
