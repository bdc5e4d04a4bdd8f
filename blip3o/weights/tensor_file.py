"""Safetensors files of named tensors, written whole and read whole or in parts.

PyTorch is imported only with the first tensor: a process that reads only shapes or metadata (such as the stream's
actors) starts one second faster.
"""

import hashlib
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


def read_shapes(uri: str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a file. Reads only the header."""
    return {name: entry.shape for name, entry in _entries(uri).items()}


def read_selected(uri: str, names: Sequence[str]) -> "Iterator[Tensor]":
    """The named tensors of a file in order, one by one by ranged reads.

    Raises `CheckpointError` if one of them is missing.
    """
    from blip3o.weights.safetensors_stream import read_tensors

    entries = _entries(uri)
    for name in names:
        if name not in entries:
            raise CheckpointError(f"{uri} holds no tensor {name}: use the same model preset")
    for _, tensor in read_tensors(entries[name] for name in names):
        yield tensor


def _entries(uri: str) -> dict[str, StoredTensor]:
    with storage.open_ranges(uri) as file:
        return {entry.name: entry for entry in read_header(uri, file)[1]}
