"""The files of a checkpoint between a worker's disk and the store: listed with sizes and sha256, checked on their way
back.

Each rank lists its own files in one JSON object; a checkpoint is whole if every rank's list is there and every file is
what its list says. What a killed run left half uploaded is told from that by the same check.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from blip3o import storage
from blip3o.errors import CheckpointError

PIECE_BYTES = 32 * 2**20


class DamagedCheckpointError(CheckpointError):
    """A checkpoint of which a file is missing, or is not the one that was written."""


@dataclass(frozen=True, kw_only=True)
class SavedFile:
    """A file by its `path` below the checkpoint, with its `size` in bytes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class RankFiles:
    """What rank `rank` of `world` ranks saved."""

    rank: int
    world: int
    files: tuple[SavedFile, ...]

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "RankFiles":
        """Reads what `to_bytes` wrote. Raises `ValueError`, `KeyError` or `TypeError` if it is something else."""
        tree = json.loads(data)
        files = tuple(SavedFile(**file) for file in tree["files"])
        return cls(rank=tree["rank"], world=tree["world"], files=files)


def list_rank(directory: Path, *, rank: int, world: int) -> RankFiles:
    """Every file below a rank's own directory, with its sha256."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = tuple(
        SavedFile(path=path.relative_to(directory).as_posix(), size=path.stat().st_size, sha256=_sha256(path))
        for path in paths
    )
    return RankFiles(rank=rank, world=world, files=files)


def push(directory: Path, files: RankFiles, uri: str) -> None:
    """Copies a rank's files below the URI. Raises `StorageError` if the store refuses."""
    for file in files.files:
        storage.upload(directory / file.path, storage.join(uri, file.path))


def rank_uri(uri: str, rank: int) -> str:
    """Where the list of a rank is."""
    return storage.join(uri, f"rank-{rank:05d}.json")


def read_lists(uri: str) -> list[RankFiles]:
    """The lists of all ranks, by rank; rank 0's says how many there are.

    Raises `DamagedCheckpointError` if one is missing, cannot be read, or is of another number of ranks.
    """
    first = _read_list(uri, 0)
    lists = [first, *[_read_list(uri, rank) for rank in range(1, first.world)]]
    for rank, found in enumerate(lists):
        if (found.rank, found.world) != (rank, first.world):
            raise DamagedCheckpointError(
                f"{rank_uri(uri, rank)} is of rank {found.rank} of {found.world}, expected {rank} of {first.world}"
            )
    return lists


def _read_list(uri: str, rank: int) -> RankFiles:
    location = rank_uri(uri, rank)
    if not storage.exists(location):
        raise DamagedCheckpointError(f"{location} is missing")
    try:
        return RankFiles.from_bytes(storage.read_bytes(location))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{location} is no list of a rank's files: {error}") from error


def pull(uri: str, files: RankFiles, directory: Path) -> None:
    """Copies a rank's files from below the URI into a directory.

    Raises `DamagedCheckpointError`, naming the file and what it has instead, if one is not the one that was written;
    `StorageError` if the store does not answer.
    """
    for file in files.files:
        location, target = storage.join(uri, file.path), directory / file.path
        if not storage.exists(location):
            raise DamagedCheckpointError(f"{location} is missing")
        size = storage.stat(location).size
        if size != file.size:
            raise DamagedCheckpointError(f"{location} has {size} bytes, {file.size} were written")
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = _fetch(location, target)
        if digest != file.sha256:
            raise DamagedCheckpointError(f"{location} has sha256 {digest[:12]}…, {file.sha256[:12]}… was written")


def _fetch(location: str, target: Path) -> str:
    """Copies a stored file and returns its sha256."""
    hashed = hashlib.sha256()
    with storage.open_ranges(location) as source, target.open("wb") as sink:
        for offset in range(0, source.size, PIECE_BYTES):
            piece = source.read(offset, min(PIECE_BYTES, source.size - offset))
            hashed.update(piece)
            sink.write(piece)
    return hashed.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
