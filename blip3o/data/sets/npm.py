"""Fetches a published package of data with `npm pack`, once, into the cache, and checks its sha256.

The archive is read in place; nothing of it is unpacked to disk and none of its scripts run.
A file whose bytes differ from the pinned ones is refused, never used.
"""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blip3o import settings
from blip3o.errors import DataError, ServiceError

_TIMEOUT_S = 600


@dataclass(frozen=True, kw_only=True)
class NpmPackage:
    """A package pinned to one version and to the `sha256` of its .tgz."""

    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The name that `npm pack` gives the archive."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def fetch(package: NpmPackage) -> Path:
    """The package's archive in the cache, fetched if it is not there yet.

    Raises `ServiceError` if npm is missing or fails, or the cache cannot be written; `DataError` if the bytes are not
    the pinned ones.
    """
    path = settings.cache_dir() / "npm" / package.file_name
    if not path.exists():
        _pack(package, path)
    _verify(package, path)
    return path


def _pack(package: NpmPackage, path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise ServiceError(f"npm was not found, and {path} is not there: install Node.js, or put the file there")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            _run([npm, "pack", "--silent", f"{package.name}@{package.version}"], Path(folder) / package.file_name)
            (Path(folder) / package.file_name).replace(path)
    except OSError as error:
        raise ServiceError(f"cannot write {path} ({error.strerror}): set BLIP3O_CACHE to a folder of yours") from error


def _run(command: list[str], archive: Path) -> None:
    """Runs npm in the folder of `archive`. Raises `ServiceError` if the archive is not there afterwards."""
    shown = " ".join(command)
    try:
        done = subprocess.run(command, cwd=archive.parent, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ServiceError(f"`{shown}` did not answer within {_TIMEOUT_S} s: check the network") from error
    if done.returncode != 0 or not archive.exists():
        cause = " ".join((done.stderr or done.stdout).decode(errors="replace").split())[-300:]
        raise ServiceError(f"`{shown}` failed: {cause or 'it made no archive'}; check the network")


def _verify(package: NpmPackage, path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise DataError(f"{path} has sha256 {found}, expected {package.sha256}: delete it, and it is fetched again")


def read_members(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The files of a .tgz whose names are `wanted`, in one pass over it: name → content."""
    members = {}
    with tarfile.open(path, "r|gz") as tar:
        for member in tar:
            if member.isfile() and wanted(member.name):
                file = tar.extractfile(member)
                assert file is not None  # true of every regular file
                members[member.name] = file.read()
    return members
