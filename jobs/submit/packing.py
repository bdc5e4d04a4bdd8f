"""The working directory as Ray packs it: without what .gitignore and .rayignore name."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blip3o.errors import ConfigError
from blip3o.storage.sizes import readable

MAX_BYTES = 500 * 2**20  # what Ray's job server takes as one package


@dataclass(frozen=True)
class Package:
    """Sizes in bytes of the files that are sent, by their paths relative to the folder."""

    sizes: dict[Path, int]

    @property
    def bytes(self) -> int:
        """Sum over all files, before they are compressed."""
        return sum(self.sizes.values())

    def __str__(self) -> str:
        """`packing 412 files, 3.1 MB`, for a message."""
        return f"packing {len(self.sizes)} files, {readable(self.bytes)}"

    def largest_folder(self) -> str:
        """The top-level folder (or file) with the most bytes, and its size."""
        folders: Counter[str] = Counter()
        for path, size in self.sizes.items():
            folders[path.parts[0]] += size
        name, size = folders.most_common(1)[0]
        return f"{name} ({readable(size)})"


def measure(folder: Path, *, limit: int = MAX_BYTES) -> Package:
    """The files of a folder that a job gets. Raises `ConfigError` if they exceed `limit` bytes."""
    package = Package({path.relative_to(folder): path.stat().st_size for path in _files(folder, _ignored_by(folder))})
    if package.bytes > limit:
        raise ConfigError(
            f"{folder} has {readable(package.bytes)} to send, and a job takes {readable(limit)}: "
            f"name what it does not need in .rayignore; the largest is {package.largest_folder()}"
        )
    return package


def _ignored_by(folder: Path) -> Callable[[Path], bool]:
    """Whether Ray leaves a path below the folder out."""
    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    quiet = logging.getLogger("ray._private.runtime_env.packaging")
    quiet.setLevel(logging.ERROR)
    rules = get_excludes_from_ignore_files(folder, include_gitignore=True, logger=quiet)
    names = set(ray_constants.get_runtime_env_default_excludes())
    return lambda path: path.name in names or any(rule(path) for rule in rules)


def _files(folder: Path, ignored: Callable[[Path], bool]) -> Iterator[Path]:
    """Files below a folder that are not ignored; ignored folders are not entered."""
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(name for name in folders if not ignored(here / name))
        yield from (here / name for name in sorted(files) if (here / name).is_file() and not ignored(here / name))
