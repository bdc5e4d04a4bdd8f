"""Converts the tensors of a PyTorch pickle to a safetensors file, the only format that the rest of blip3o reads.

BLIP3-o's EVA-CLIP tower is published as `pytorch_model.bin`. Only tensors are read: PyTorch's restricted unpickler
refuses anything that would run code. The file is memory-mapped, so only part of it is in memory.
"""

import pickle
import struct
from pathlib import Path

import torch
from torch import Tensor

from blip3o.errors import BundleError, one_line
from blip3o.storage.magic import FIX_OF_A_PICKLE, SNIFFED_BYTES, recognise
from blip3o.weights.safetensors_stream import CODES, Slot, write_tensors

# What the unpickler raises for a damaged pickle, or for a file that is not one.
_FAULTS = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
    EOFError,
    MemoryError,
    OverflowError,
    struct.error,
    pickle.UnpicklingError,
)


def unpickle_tensors(path: Path, out: str) -> int:
    """Writes the tensors of a local pickle, with their names, to a safetensors file; returns their number.

    Raises `BundleError` if the file is missing, or holds anything but a dictionary of tensors.
    """
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except _FAULTS as error:
        raise BundleError(_explained(path, error)) from error
    if not isinstance(loaded, dict):
        raise BundleError(f"{path} holds {type(loaded).__name__}: give a file with a state dictionary and nothing else")
    odd = [name for name, value in loaded.items() if not (isinstance(value, Tensor) and _is_plain(value))]
    if odd:
        raise BundleError(f"{path}: {odd[0]} is no tensor: give a file with a state dictionary and nothing else")
    unknown = {tensor.dtype for tensor in loaded.values()} - CODES.keys()
    if unknown:
        raise BundleError(f"{path} holds tensors of {unknown.pop()}, which are not read here")
    slots = [Slot(name=str(name), shape=tuple(tensor.shape), source=tensor) for name, tensor in loaded.items()]
    write_tensors(out, slots, metadata={"format": "pt"})
    return len(slots)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense and in memory, not sparse or on the meta device."""
    return tensor.layout == torch.strided and not tensor.is_meta


def _explained(path: Path, error: Exception) -> str:
    """The error message for a file that cannot be unpickled."""
    try:
        with path.open("rb") as file:
            found = recognise(file.read(SNIFFED_BYTES), size=path.stat().st_size)
    except OSError:
        found = None
    known = found is not None and not found.endswith(FIX_OF_A_PICKLE)
    return f"{path} is not a pickle of tensors" + (f": it {found}" if known else f" ({one_line(error)})")
