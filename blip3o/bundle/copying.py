"""Copying a bundle to another place, with every byte checked on its way."""

import hashlib

from blip3o import storage
from blip3o.bundle.layout import SEAL
from blip3o.bundle.reading import open_bundle
from blip3o.errors import BundleError


def copy_bundle(source: str, target: str) -> None:
    """Copies the files of a bundle to another folder and then its seal. Does nothing if the same bundle is there.

    Raises `BundleError` if there is no bundle or a file of it was changed, `StorageError` if a store refuses.
    """
    checksums = open_bundle(source).checksums
    seal, copied = (storage.join(uri, SEAL) for uri in (source, target))
    sealed = storage.read_bytes(seal)
    if storage.exists(copied):
        if storage.read_bytes(copied) == sealed:
            return
        storage.delete(copied)  # while files are replaced, the folder is no bundle
    for name, sha256 in checksums.items():
        if _copy(storage.join(source, name), storage.join(target, name)) != sha256:
            raise BundleError(f"{source}: {name} is not what was exported (its sha256 differs): export it again")
    storage.write_bytes(copied, sealed)


def _copy(source: str, target: str) -> str:
    """Copies a file of any size; returns its sha256."""
    digest = hashlib.sha256()
    with storage.open_ranges(source) as file, storage.open_write(target) as sink:
        for piece in file.pieces():
            digest.update(piece)
            sink.write(piece)
    return digest.hexdigest()
