"""The header of a safetensors file: a length, then JSON with each tensor's type, shape and offsets.

Only the header is read, so a file of any size costs one small read. An unknown type is not an error here: it is one for
the caller that needs such a tensor.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from blip3o import storage
from blip3o.errors import BundleError, one_line
from blip3o.storage.magic import SNIFFED_BYTES, recognise

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's limit: a file that claims more is not valid
# Bits per value, by the format's name of the type.
BITS = {
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
# Supported types of weights. 8-bit types and integers are meaningless without their scales.
READABLE = ("F64", "F32", "F16", "BF16")


class ForeignFileError(BundleError):
    """A file that does not hold weights, or a tensor of a type that cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """Location of a tensor: `size` bytes at `offset` in the file `uri`. `dtype` is the format's name of its type."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    uri: str
    offset: int
    size: int


def require_readable(entry: StoredTensor) -> None:
    """Raises `ForeignFileError` if a tensor's type is not supported for weights."""
    if entry.dtype not in READABLE:
        raise ForeignFileError(
            f"{entry.uri}: {entry.name} is stored as {entry.dtype}: bf16, fp16, fp32 are read, so give the weights "
            "before they were quantized"
        )


def read_header(uri: str, file: storage.RangeReader) -> tuple[bytes, list[StoredTensor]]:
    """The header's bytes, including its length, and the tensors in file order.

    Raises `StorageError` if the file is missing, `BundleError` if it is not a safetensors file, and its subclass
    `ForeignFileError` if another format is recognized.
    """
    size = file.size
    length = int.from_bytes(file.read(0, 8), "little") if size >= 8 else MAX_HEADER_BYTES + 1
    if length > MAX_HEADER_BYTES:
        raise _not_safetensors(uri, file, f"its header would be {length} bytes long" if size >= 8 else f"{size} bytes")
    if length > size - 8:
        raise _not_safetensors(uri, file, f"its header has {length} bytes, the file {size}: it is truncated")
    head = file.read(8, length)
    try:
        entries = _entries(uri, head, data=8 + length)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _not_safetensors(uri, file, f"{one_line(repr(error))} in its header") from error
    entries.sort(key=lambda entry: (entry.offset, entry.size))
    _require_whole(uri, entries, begin=8 + length, size=size)
    return length.to_bytes(8, "little") + head, entries


def _not_safetensors(uri: str, file: storage.RangeReader, why: str) -> BundleError:
    size = file.size
    found = recognise(file.read(0, min(size, SNIFFED_BYTES)) if size else b"", size=size)
    if found is not None:
        return ForeignFileError(f"{uri} {found}")
    return BundleError(f"{uri} is not a safetensors file ({why}): fetch it again")


def _require_whole(uri: str, entries: list[StoredTensor], *, begin: int, size: int) -> None:
    end = begin
    for entry in entries:
        if entry.offset != end:
            name = one_line(repr(entry.name))
            raise BundleError(f"{uri}: tensor {name} does not begin where the one before ends: fetch it again")
        end += entry.size
    if end != size:
        truncated = "it is truncated, " if size < end else ""
        raise BundleError(f"{uri} has {size} bytes, its header describes {end}: {truncated}fetch it again")


def _entries(uri: str, head: bytes, *, data: int) -> list[StoredTensor]:
    entries = []
    for name, about in json.loads(head.decode(), object_pairs_hook=_once).items():
        if name == "__metadata__":
            continue
        name.encode()  # a lone surrogate cannot be printed
        begin, end = (_count(number) for number in about["data_offsets"])
        shape, dtype = tuple(_count(side) for side in about["shape"]), about["dtype"]
        if not isinstance(dtype, str) or end < begin:
            raise ValueError(f"{name} of type {dtype!r} from {begin} to {end}")
        entry = StoredTensor(name=name, dtype=dtype, shape=shape, uri=uri, offset=data + begin, size=end - begin)
        if dtype in BITS and 8 * entry.size != BITS[dtype] * math.prod(shape):
            raise ValueError(f"{name} of shape {shape} in {entry.size} bytes")
        entries.append(entry)
    return entries


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} is named twice")
        found[name] = value
    return found


def _count(number: object) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**63:
        raise ValueError(f"{number!r} is no count")
    return number
