"""Safetensors files of any size as streams: the header is read on its own, tensors one by one or in chunks.

So a model of many gigabytes passes through a few megabytes of memory, from and to any store. Bytes are copied
unchanged. (The format: a length, a JSON header with each tensor's type, shape and offsets, then the tensors.)
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
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
RANGE_BYTES = 16 * 2**20  # of one read; a multiple of every type's size
AHEAD = 16  # ranges on their way from a store
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
        yield from _whole_tensors(file, entries, digest)


def read_tensors(entries: Iterable[StoredTensor]) -> Iterator[tuple[StoredTensor, Tensor]]:
    """The given tensors, opening a file once for consecutive ones. Raises `BundleError` for an unsupported type."""
    for uri, group in groupby(entries, key=lambda entry: entry.uri):
        wanted = list(group)
        for entry in wanted:
            require_readable(entry)
        with storage.open_ranges(uri) as file:
            yield from _whole_tensors(file, wanted)


def load_file(uri: str, place: Callable[[StoredTensor], Tensor | None], digest: "_Hash") -> bool:
    """Reads a file into the tensors that `place` returns, converted to their dtype on their device; None: left out.

    Only these tensors and the ranges that are on their way are in memory. `digest` is updated with every byte of
    the file. If no tensor is wanted, nothing but the header is read: returns whether the file was.

    Raises `StorageError` if it is missing, `BundleError` if it is not a safetensors file or for an unsupported type.
    """
    with storage.open_ranges(uri) as file:
        head, entries = read_header(uri, file)
        placed = {entry.name: tensor for entry in entries if (tensor := place(entry)) is not None}
        for entry in entries:
            if entry.name in placed:
                require_readable(entry)
        if not placed:
            return False
        digest.update(head)
        for entry, start, data in _parts(file, entries, digest):
            if entry.name in placed:
                _copy(entry, start, data, placed[entry.name])
    return True


def _whole_tensors(
    file: storage.RangeReader, entries: Sequence[StoredTensor], digest: "_Hash | None" = None
) -> Iterator[tuple[StoredTensor, Tensor]]:
    tensor = torch.empty(0)
    for entry, start, data in _parts(file, entries, digest):
        known = DTYPES.get(entry.dtype)
        if start == 0:
            tensor = torch.empty(entry.shape if known else entry.size, dtype=known or torch.uint8)
        _copy(entry, start, data, tensor)
        if start + len(data) == entry.size:
            yield entry, tensor


def _copy(entry: StoredTensor, start: int, data: memoryview, out: Tensor) -> None:
    """Copies bytes of a stored tensor, from byte `start` on, to their place in `out`."""
    if not data:
        return
    values = torch.frombuffer(data, dtype=DTYPES.get(entry.dtype, torch.uint8))
    first = start // values.element_size()
    with torch.no_grad():
        out.view(-1)[first : first + len(values)].copy_(values)


def _parts(
    file: storage.RangeReader, entries: Sequence[StoredTensor], digest: "_Hash | None" = None
) -> Iterator[tuple[StoredTensor, int, memoryview]]:
    """(tensor, offset in it, bytes there) of these tensors in order, read ahead as ranges of about `RANGE_BYTES`."""
    groups = list(_ranges(entries))
    extents = [(group[0][0].offset + group[0][1], sum(size for _, _, size in group)) for group in groups]
    for group, data in zip(groups, file.read_ahead(extents, ahead=AHEAD), strict=True):
        if digest is not None:
            digest.update(data)
        view, done = memoryview(data), 0
        for entry, start, size in group:
            yield entry, start, view[done : done + size]
            done += size


def _ranges(entries: Iterable[StoredTensor]) -> Iterator[list[tuple[StoredTensor, int, int]]]:
    """(tensor, offset in it, size) in groups that are neighbours in the file: small tensors share a range, a large one
    has several.
    """
    group: list[tuple[StoredTensor, int, int]] = []
    held = end = 0
    for entry in entries:
        for start in range(0, max(entry.size, 1), RANGE_BYTES):
            size = min(RANGE_BYTES, entry.size - start)
            if group and (held + size > RANGE_BYTES or entry.offset + start != end):
                yield group
                group, held = [], 0
            group.append((entry, start, size))
            held, end = held + size, entry.offset + start + size
    if group:
        yield group


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
