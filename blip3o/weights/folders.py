"""Folders of weights: their safetensors files, their index of tensors, and weights in other formats."""

import json
from typing import Any

from blip3o import storage
from blip3o.errors import BundleError
from blip3o.storage.magic import SNIFFED_BYTES, recognise

SUFFIX = ".safetensors"
INDEX_SUFFIX = f"{SUFFIX}.index.json"
OTHER_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
SHOWN = 3


def weight_files(uri: str) -> list[str]:
    """The safetensors files in a folder and its subfolders, except hidden ones.

    Raises `BundleError` if an index names a file that does not exist.
    """
    root = storage.normalize(uri)
    found = [file.uri for file in storage.list_files(root) if not is_hidden(file.uri.removeprefix(root))]
    for file in found:
        if file.endswith(INDEX_SUFFIX):
            folder = file.rpartition("/")[0]
            missing = sorted(
                {storage.join(folder, name) for name in read_index(file, storage.read_bytes(file)).values()}
                - set(found)
            )
            if missing:
                raise BundleError(f"{file} names {missing[0]} ({len(missing)} such), which is not there: fetch it")
    return [file for file in found if file.endswith(SUFFIX)]


def is_hidden(path: str) -> bool:
    """Whether a path within a folder is hidden: macOS's `._…`, or in `.cache/`, `.ipynb_checkpoints/`, …"""
    return any(part.startswith(".") for part in path.split("/"))


def read_index(uri: str, data: bytes) -> dict[str, str]:
    """The file of each tensor, by an index. Raises `BundleError` if the data is not an index."""
    files = read_json(uri, data).get("weight_map", {})
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise BundleError(f"{uri}: weight_map does not give a file for each tensor: fetch it again")
    return files


def read_json(uri: str, data: bytes | None) -> dict[str, Any]:
    """Parses a JSON object. Raises `BundleError` if the file is missing (`data` is None) or holds something else."""
    try:
        tree = json.loads(data or b"")
        if not isinstance(tree, dict):
            raise ValueError(f"a {type(tree).__name__}")
    except (ValueError, RecursionError) as error:
        found = recognise(data[:SNIFFED_BYTES], size=len(data), is_text=True) if data is not None else None
        raise BundleError(f"{uri} {found or 'is missing or no JSON object: fetch the checkpoint again'}") from error
    return tree


def other_weights(uri: str) -> str:
    """The end of an error that names a folder's weights in other formats; empty if there are none."""
    names = [file.uri.rpartition("/")[2] for file in storage.list_files(uri) if file.uri.endswith(OTHER_SUFFIXES)]
    if not names:
        return ""
    pickled = any(name.endswith(OTHER_SUFFIXES[:4]) for name in names)
    fix = "; `blip3o convert unpickle` makes safetensors of a pickle" if pickled else ""
    return f" (there are {', '.join(names[:SHOWN])}{fix})"
