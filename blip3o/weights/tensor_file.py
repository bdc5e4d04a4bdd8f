"""Safetensors files of named tensors, written whole and read whole or in parts.

PyTorch is imported only with the first tensor: a process that reads only shapes or metadata (such as the stream's
actors) starts one second faster.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from blip3o import storage
from blip3o.errors import CheckpointError
from blip3o.weights.safetensors_header import StoredTensor, read_header

if TYPE_CHECKING:
    from torch import Tensor


def write_tensor_file(uri: str, tensors: "Mapping[str, Tensor]") -> str:
    """Writes a file of tensors and returns its sha256. Raises `StorageError`."""
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    storage.write_bytes(uri, data)
    return hashlib.sha256(data).hexdigest()


def parse_tensors(data: bytes) -> "dict[str, Tensor]":
    """The tensors in the bytes of a file."""
    from safetensors.torch import load

    return load(data)


def read_shapes(uri: str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a file. Reads only the header."""
    return {name: entry.shape for name, entry in _entries(uri).items()}


def read_selected(uri: str, names: Sequence[str]) -> "Iterator[Tensor]":
    """The named tensors of a file in order, one by one with ranged reads.

    Raises `CheckpointError` if one of them is missing.
    """
    entries = _entries(uri)
    with storage.open_ranges(uri) as file:
        for name in names:
            if name not in entries:
                raise CheckpointError(f"{uri} holds no tensor {name}: use the same model preset")
            entry = entries[name]
            about = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [0, entry.size]}
            head = json.dumps({name: about}).encode()
            whole = len(head).to_bytes(8, "little") + head + file.read(entry.offset, entry.size)
            yield parse_tensors(whole)[name]


def _entries(uri: str) -> dict[str, StoredTensor]:
    with storage.open_ranges(uri) as file:
        return {entry.name: entry for entry in read_header(uri, file)[1]}
