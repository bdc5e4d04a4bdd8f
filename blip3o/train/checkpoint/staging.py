"""The staging folder of a worker: checkpoints on their way to the store and back, below one folder that is its own.

A process that is killed cannot clean up, and a checkpoint has gigabytes. So each process locks its folder, and the
next one that starts on the node removes those that nobody locks. The kernel drops a lock when the last process that
holds it has ended, however it ended; a number of a process would say nothing, since containers that share the disk
count theirs separately.
"""

import fcntl
import multiprocessing.util
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from blip3o import settings
from blip3o.errors import ConfigError

PREFIX = "blip3o-staging-"
_LONGEST = 75  # bytes of a path: to more, multiprocessing could not add the name of a socket, of 108 in all
_GIB = 2**30


def staging_root() -> Path:
    """Where staging folders are made: `BLIP3O_STAGING_DIR`, else the system's temporary folder.

    Raises `ConfigError` if it cannot be made.
    """
    root = Path(settings.get("BLIP3O_STAGING_DIR") or tempfile.gettempdir()).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"BLIP3O_STAGING_DIR={root} cannot be made ({error.strerror}): name a folder on a local disk"
        ) from error
    return root


@lru_cache(maxsize=1)
def own_folder() -> Path:
    """This process's staging folder. The first call makes it, after it has removed those of dead processes.

    Temporary files of `multiprocessing` (`pymp-…`) go there too from then on: it cannot remove them either when it is
    killed. Raises `ConfigError` as `staging_root`, and if the folder cannot be written.
    """
    root = staging_root()
    remove_abandoned(root)
    try:
        folder = _locked(root)
    except PermissionError as error:
        raise ConfigError(f"{root} cannot be written: set BLIP3O_STAGING_DIR to a folder on a local disk") from error
    if len(bytes(folder)) <= _LONGEST:
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        multiprocessing.util.get_temp_dir()  # is made once for a process and its children
        tempfile.tempdir = before
    return folder


def new_folder(purpose: str) -> Path:
    """A new folder below this process's own, with `purpose` in its name. Raises `ConfigError` as `own_folder`."""
    return Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=own_folder()))


def release() -> None:
    """Removes this process's own folder at the end of its work, unless a checkpoint in it is still on its way."""
    folder = own_folder()
    if not any(folder.glob("checkpoint-*")):
        shutil.rmtree(folder, ignore_errors=True)
        own_folder.cache_clear()


def remove_abandoned(root: Path) -> None:
    """Removes the staging folders below `root` that no process locks. Those of other users stay."""
    for folder in root.glob(f"{PREFIX}*"):
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def require_space(needed: float) -> None:
    """Raises `ConfigError` if the disk of the staging folder has less than `needed` bytes free."""
    root = staging_root()
    free = shutil.disk_usage(root).free
    if free < needed:
        raise ConfigError(
            f"{root} has {free / _GIB:.1f} GiB free, and a checkpoint of this node's workers takes about "
            f"{needed / _GIB:.1f} GiB: free space there, or set BLIP3O_STAGING_DIR to a folder on a larger local disk"
        )


def _locked(root: Path) -> Path:
    """A new folder that this process locks until it ends."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        lock = _lock(folder)
        # Before it was locked, another process may have taken it for abandoned.
        if lock is not None and folder.exists():
            return folder


def _lock(folder: Path) -> int | None:
    """Locks a folder; returns the descriptor that holds the lock, or None if another process has it or it is gone.

    Children of a fork share the lock: they may use what is in the folder.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # gone, a file, or of another user
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
