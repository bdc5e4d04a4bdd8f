"""Copies files between folders of any storage: from a store to a disk, to another bucket, and back."""

import hashlib
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

from blip3o.errors import StorageError
from blip3o.storage.files import list_files, open_ranges, open_write
from blip3o.storage.uris import join, normalize

THREADS = 8  # files at a time; a large one is read by parallel ranges besides

OnProgress = Callable[[int, int], None]


def _quiet(done: int, total: int) -> None:
    """Shows nothing."""


def copy_file(uri: str, target: str) -> str:
    """Copies a file, which appears complete or not at all; returns its sha256. Raises `StorageError`."""
    digest = hashlib.sha256()
    with open_ranges(uri) as source, open_write(target) as sink:
        for piece in source.pieces():
            digest.update(piece)
            sink.write(piece)
    return digest.hexdigest()


def copy_files(names: Collection[str], folder: str, target: str, *, on_progress: OnProgress = _quiet) -> dict[str, str]:
    """Copies files, named by their paths below `folder`, to the same paths below `target`; returns their sha256.

    `on_progress` gets the numbers of files that are done and of all. Raises `StorageError` at the first that cannot be
    copied; others stay.
    """
    hashes: dict[str, str] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        copied = pool.map(lambda name: copy_file(join(folder, name), join(target, name)), names)
        for name, digest in zip(names, copied, strict=True):
            hashes[name] = digest
            on_progress(len(hashes), len(names))
    return hashes


def copy_folder(folder: str, target: str, *, on_progress: OnProgress = _quiet) -> int:
    """Copies all files below a folder; returns the number of their bytes. Files that are there already are replaced.

    Raises `StorageError` if there is nothing to copy, and if a file has another size in the end, as one that grew.
    """
    sizes = _sizes(folder)
    if not sizes:
        raise StorageError(f"{folder} has no files: correct the URI")
    copy_files(sizes, folder, target, on_progress=on_progress)
    there = _sizes(target)
    wrong = [name for name, size in sizes.items() if there.get(name) != size]
    if wrong:
        raise StorageError(f"{join(target, wrong[0])} is not what was copied: nothing may write there meanwhile")
    return sum(sizes.values())


def _sizes(folder: str) -> dict[str, int]:
    """The sizes of the files below a folder, by their paths below it."""
    prefix = normalize(folder) + "/"
    return {file.uri.removeprefix(prefix): file.size for file in list_files(folder)}
