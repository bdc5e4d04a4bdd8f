"""Tensors out of a PyTorch pickle into a safetensors file, which everything else here reads.

BLIP3-o's EVA-CLIP tower is published as `pytorch_model.bin`. Only tensors are taken: PyTorch's restricted unpickler
refuses whatever would run code, and the file is mapped, so that no more than a piece of it is in memory.
"""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from blip3o.convert.tensorfile import CODES, Slot, write_tensors
from blip3o.errors import BundleError


def unpickle_tensors(path: Path, out: str) -> int:
    """Writes the tensors of a local pickle under their names to a safetensors file; returns how many.

    Raises `BundleError` if the file is missing, or holds anything but a dictionary of tensors.
    """
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise BundleError(f"{path} is no pickle of tensors ({' '.join(str(error).split())[:200]})") from error
    odd = (
        [name for name, value in loaded.items() if not isinstance(value, Tensor)]
        if isinstance(loaded, dict)
        else ["it"]
    )
    if odd:
        raise BundleError(f"{path}: {odd[0]} is no tensor: give a file with a state dictionary and nothing else")
    unknown = {tensor.dtype for tensor in loaded.values()} - CODES.keys()
    if unknown:
        raise BundleError(f"{path} holds tensors of {unknown.pop()}, which are not read here")
    slots = [Slot(name=name, shape=tuple(tensor.shape), source=tensor) for name, tensor in loaded.items()]
    write_tensors(out, slots, metadata={"format": "pt"})
    return len(slots)
