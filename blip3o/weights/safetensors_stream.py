"""Safetensors files of any size as streams: the header is read on its own, tensors one by one or in chunks.

So a model of many gigabytes passes through a few megabytes of memory, from and to any store. Bytes are copied
unchanged. (The format: a length, a JSON header with each tensor's type, shape and offsets, then the tensors.)
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from blip3o import storage
from blip3o.weights.safetensors_header import StoredTensor, read_header, require_readable

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK_BYTES = 16 * 2**20
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}

CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """A tensor to write: its name and shape, and the source of its bytes, in a file or in memory."""

    name: str
    shape: tuple[int, ...]
    source: StoredTensor | Tensor

    @property
    def dtype(self) -> str:
        """The format's name of its type."""
        return CODES[self.source.dtype] if isinstance(self.source, Tensor) else self.source.dtype

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.source.nbytes if isinstance(self.source, Tensor) else self.source.size


def read_entries(uri: str) -> list[StoredTensor]:
    """The tensors of a file in file order. Reads only its header.

    Raises `StorageError` if it is missing, `BundleError` if it is not a safetensors file.
    """
    with storage.open_ranges(uri) as file:
        return read_header(uri, file)[1]


def same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors are equal in type, shape and every byte. Raises `StorageError` if one is missing."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with storage.open_ranges(one.uri) as first, storage.open_ranges(other.uri) as second:
        pairs = zip(_chunks(first, one), _chunks(second, other), strict=True)
        return all(mine == theirs for mine, theirs in pairs)


def read_in_order(uri: str, digest: "_Hash") -> Iterator[tuple[StoredTensor, Tensor]]:
    """All tensors of a file in order; in the end, `digest` has been updated with every byte of the file.

    A tensor of a type that torch does not have is returned as bytes (uint8). Raises as `read_entries` does.
    """
    with storage.open_ranges(uri) as file:
        head, entries = read_header(uri, file)
        digest.update(head)
        for entry in entries:
            data = file.read(entry.offset, entry.size)
            digest.update(data)
            yield entry, _to_tensor(entry, data)


def read_tensors(entries: Iterable[StoredTensor]) -> Iterator[tuple[StoredTensor, Tensor]]:
    """The given tensors, opening a file once for consecutive ones. Raises `BundleError` for an unsupported type."""
    for uri, group in groupby(entries, key=lambda entry: entry.uri):
        with storage.open_ranges(uri) as file:
            for entry in group:
                require_readable(entry)
                yield entry, _to_tensor(entry, file.read(entry.offset, entry.size))


def write_tensors(uri: str, slots: Sequence[Slot], *, metadata: dict[str, str] | None = None) -> str:
    """Writes a file with these tensors in this order, copying their bytes in chunks. Returns its sha256.

    Raises `StorageError` if a source is missing or the store refuses.
    """
    digest = sha256()
    with storage.open_write(uri) as out:
        for data in _pieces(slots, metadata or {}):
            digest.update(data)
            out.write(data)
    return digest.hexdigest()


def _pieces(slots: Sequence[Slot], metadata: dict[str, str]) -> Iterator[bytes]:
    yield _head(slots, metadata)
    # Consecutive tensors of one file are read through one handle.
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


def _to_tensor(entry: StoredTensor, data: bytes) -> Tensor:
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    if not entry.size:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).view(entry.shape)
