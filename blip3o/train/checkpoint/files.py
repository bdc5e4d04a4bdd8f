"""Transfers the files of a checkpoint between a worker's disk and the store, and verifies them on download.

Each rank lists its files with sizes and sha256 in one JSON object. A checkpoint is complete if every rank's list exists
and every file matches its entry; the same check detects the partial upload of a killed run.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from blip3o import storage
from blip3o.errors import CheckpointError

CHUNK_BYTES = 32 * 2**20


class DamagedCheckpointError(CheckpointError):
    """A checkpoint with a file that is missing or differs from the one that was written."""


@dataclass(frozen=True, kw_only=True)
class SavedFile:
    """A file: its `path` below the checkpoint's folder, and its `size` in bytes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class RankFiles:
    """The files that rank `rank` of `world` ranks saved."""

    rank: int
    world: int
    files: tuple[SavedFile, ...]

    def to_bytes(self) -> bytes:
        """Serializes to JSON."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "RankFiles":
        """Parses the output of `to_bytes`. Raises `ValueError`, `KeyError` or `TypeError` for other data."""
        tree = json.loads(data)
        files = tuple(SavedFile(**file) for file in tree["files"])
        return cls(rank=tree["rank"], world=tree["world"], files=files)


def list_rank_files(directory: Path, *, rank: int, world: int) -> RankFiles:
    """Lists every file below a rank's own directory, with its sha256."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = tuple(
        SavedFile(path=path.relative_to(directory).as_posix(), size=path.stat().st_size, sha256=_sha256(path))
        for path in paths
    )
    return RankFiles(rank=rank, world=world, files=files)


def upload_files(directory: Path, files: RankFiles, uri: str) -> None:
    """Uploads a rank's files below the URI. Raises `StorageError` if the store refuses."""
    for file in files.files:
        storage.upload(directory / file.path, storage.join(uri, file.path))


def rank_list_uri(uri: str, rank: int) -> str:
    """The URI of a rank's list, below `uri`."""
    return storage.join(uri, f"rank-{rank:05d}.json")


def read_rank_lists(uri: str) -> list[RankFiles]:
    """The lists of all ranks, in order. Rank 0's list has the number of ranks.

    Raises `DamagedCheckpointError` if a list is missing, cannot be parsed, or belongs to another number of ranks.
    """
    first = _read_list(uri, 0)
    lists = [first, *[_read_list(uri, rank) for rank in range(1, first.world)]]
    for rank, found in enumerate(lists):
        if (found.rank, found.world) != (rank, first.world):
            raise DamagedCheckpointError(
                f"{rank_list_uri(uri, rank)} is of rank {found.rank} of {found.world}, expected {rank} of {first.world}"
            )
    return lists


def _read_list(uri: str, rank: int) -> RankFiles:
    location = rank_list_uri(uri, rank)
    if not storage.exists(location):
        raise DamagedCheckpointError(f"{location} is missing")
    try:
        return RankFiles.from_bytes(storage.read_bytes(location))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{location} is no list of a rank's files: {error}") from error


def download_files(uri: str, files: RankFiles, directory: Path) -> None:
    """Downloads a rank's files from below the URI into a directory, and verifies them.

    Raises `DamagedCheckpointError`, with the file and the mismatch, if a file is not the one that was written, and
    `StorageError` if the store does not respond.
    """
    for file in files.files:
        location, target = storage.join(uri, file.path), directory / file.path
        if not storage.exists(location):
            raise DamagedCheckpointError(f"{location} is missing")
        size = storage.stat(location).size
        if size != file.size:
            raise DamagedCheckpointError(f"{location} has {size} bytes, {file.size} were written")
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = _download(location, target)
        if digest != file.sha256:
            raise DamagedCheckpointError(f"{location} has sha256 {digest[:12]}…, {file.sha256[:12]}… was written")


def _download(location: str, target: Path) -> str:
    """Downloads a file by parallel ranges and returns its sha256, which is computed on the way."""
    hashed = hashlib.sha256()
    with storage.open_ranges(location) as source, target.open("wb") as sink:
        size = source.size
        extents = ((offset, min(CHUNK_BYTES, size - offset)) for offset in range(0, size, CHUNK_BYTES))
        for chunk in source.read_ahead(extents):
            hashed.update(chunk)
            sink.write(chunk)
    return hashed.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
