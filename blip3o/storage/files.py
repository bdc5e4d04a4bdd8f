"""Every path is a URI: `s3://bucket/key`, `file:///path` or a plain path.

Endpoint, region and credentials of S3 come from the standard AWS chain (environment, config files, instance profile),
so any S3-compatible store works: `blip3o.storage.s3_connection`. Objects are read by `blip3o.storage.s3`, which checks
their length; pyarrow's S3 is used for streams to large objects only. Transient failures (5xx, throttling, lost
connections, stalls) are retried: `blip3o.storage.retry`. Writes are atomic: S3 objects by themselves, local files
because they are renamed into place. Errors name the URI and what to do about it.
"""

import errno
import functools
import io
import logging
import os
import posixpath
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pyarrow import NativeFile, fs

from blip3o.storage import parallel, s3, s3_connection
from blip3o.storage.retry import with_retries
from blip3o.storage.s3_filesystem import s3_filesystem
from blip3o.storage.store_errors import MissingFileError, explained, missing
from blip3o.storage.uris import BadUriError, is_canonical, join, normalize, shown
from blip3o.storage.uris import within as within

logger = logging.getLogger(__name__)

T = TypeVar("T")

PIECE_BYTES = 16 * 2**20  # of a file that is too large for memory


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """One stored file: its `uri`, `size` in bytes, and a `version` that changes when its content does (the ETag of
    an object, the mtime in ns of a local file)."""

    uri: str
    size: int
    version: str


_LOCAL = fs.LocalFileSystem()


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow file system of a URI, which may be kept for any time, and the path inside it.

    Raises `BadUriError` for an impossible name, `ConfigError` if S3 is not configured.
    """
    path, on_s3 = _locate(uri)
    return (s3_filesystem() if on_s3 else _LOCAL), path


def _locate(uri: str) -> tuple[str, bool]:
    """The path of a URI in its store, and whether that store is S3."""
    uri = normalize(uri)
    return uri.removeprefix("s3://"), uri.startswith("s3://")


def forget_clients() -> None:
    """Drops connections and credentials, so that environment and config files are read again."""
    s3_connection.forget()


def _with_retries(uri: str, attempt: Callable[[], T]) -> T:
    """`attempt()`, retried after transient failures of the store, with its errors explained."""
    with explained(uri):
        return with_retries(uri, attempt)


def read_bytes(uri: str, *, part_bytes: int = parallel.PART_BYTES) -> bytes:
    """The whole content of a file; an object of more than two parts is read as parallel ranges of `part_bytes`.

    Raises `MissingFileError`, `BadUriError`, `ReplacedFileError` if the object is replaced meanwhile, or `StorageError`
    if it cannot be read.
    """
    path, on_s3 = _locate(uri)
    if on_s3:
        with explained(uri):
            return parallel.read_object(_object(uri, path), part_bytes=part_bytes)
    with explained(uri):
        if Path(path).is_dir():
            raise IsADirectoryError(errno.EISDIR, path)
        with _LOCAL.open_input_file(path) as file:
            return file.read()


def _object(uri: str, path: str) -> str:
    if "/" not in path:
        raise BadUriError(f"{uri} is a bucket: name a file in it")
    return path


class RangeReader:
    """One file, for many reads of parts of it. Threads may share it."""

    def __init__(self, uri: str, file: io.FileIO | None) -> None:
        """`file` is held open; it is None for an S3 object."""
        self._uri, self._file = uri, file

    @functools.cached_property
    def size(self) -> int:
        """Bytes of the file. Raises `StorageError` if it is missing."""
        return stat(self._uri).size if self._file is None else os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on.

        Raises `TruncatedFileError` (a `StorageError`) if the file is shorter, `StorageError` if it cannot be read.
        """
        if self._file is None:
            path, _ = _locate(self._uri)
            with explained(self._uri):
                return parallel.read_range(path, offset, size)
        parts: list[bytes] = []
        left = size
        with explained(self._uri):
            while left and (part := os.pread(self._file.fileno(), left, offset + size - left)):
                parts.append(part)
                left -= len(part)
        if left:
            raise s3.truncated(self._uri, offset, size, self.size)
        return b"".join(parts)

    def read_ahead(self, ranges: Iterable[tuple[int, int]], *, ahead: int = parallel.THREADS) -> Iterator[bytearray]:
        """The bytes of each `(offset, size)`, in order; threads read the next ones, so at most `ahead` are held.

        All are of one version of an object. Raises as `read`, and `ReplacedFileError` if it is replaced meanwhile.
        """
        version, (path, _) = s3.Version(), _locate(self._uri)

        def part(offset: int, size: int) -> bytearray:
            out = bytearray(size)
            if self._file is not None:
                self._fill(offset, memoryview(out))
            elif size:
                parallel.fill_part(path, offset, memoryview(out), version)
            return out

        # A disk needs no more than the next part.
        depth = ahead if self._file is None else min(ahead, 2)
        with explained(self._uri):
            yield from parallel.read_ahead(part, ranges, ahead=depth)

    def pieces(self) -> Iterator[bytearray]:
        """All bytes of the file, in order, at most `PIECE_BYTES` at a time. Raises as `read_ahead`."""
        size = self.size
        yield from self.read_ahead((start, min(PIECE_BYTES, size - start)) for start in range(0, size, PIECE_BYTES))

    def _fill(self, offset: int, out: memoryview) -> None:
        assert self._file is not None
        done = 0
        with explained(self._uri):
            while done < len(out) and (count := os.preadv(self._file.fileno(), [out[done:]], offset + done)):
                done += count
        if done != len(out):
            raise s3.truncated(self._uri, offset, len(out), self.size)


@contextmanager
def open_ranges(uri: str) -> Iterator[RangeReader]:
    """A file open for reading ranges. Raises `StorageError` if it is missing: for an object, at the first read."""
    path, on_s3 = _locate(uri)
    if on_s3:
        yield RangeReader(uri, None)
        return
    with explained(uri):
        file = io.FileIO(path)
    with file:
        yield RangeReader(uri, file)


def read_ranges(uri: str, ranges: list[tuple[int, int]]) -> list[bytes]:
    """The bytes of each `(offset, size)` of one file, in the order given.

    Raises `StorageError` if the file is missing or cannot be read, `TruncatedFileError` (a subclass) if it is
    shorter than a range says.
    """
    with open_ranges(uri) as file:
        return [file.read(offset, size) for offset, size in ranges]


def open_write(uri: str) -> AbstractContextManager[NativeFile]:
    """A stream to a file that appears, complete, when the block ends. Creates parent folders of local paths.

    If the block fails, a local file is left as it was. pyarrow cannot abort an upload, so an object is truncated
    and then deleted, an earlier one of that name too; if the process is killed in between, it stays truncated. So write
    whatever vouches for the file after it. Raises `StorageError` if the store refuses.
    """
    return _stream(uri, explained)


@contextmanager
def _stream(
    uri: str, guard: Callable[[str], AbstractContextManager[None]], aside: str | None = None
) -> Iterator[NativeFile]:
    """As `open_write`; the store's errors pass through `guard`. `aside` is as in `write_bytes`."""
    path, on_s3 = _locate(uri)
    local = not on_s3
    filesystem = s3_connection.connection().filesystem() if on_s3 else _LOCAL
    # A unique name: several processes may write the same file at once, as they do with ledgers.
    growing = path if aside is None else join(normalize(aside), posixpath.basename(path))
    target = f"{growing}.{uuid.uuid4().hex}.partial" if local else path
    with guard(uri):
        if local:
            for folder in {posixpath.dirname(path), posixpath.dirname(target)}:
                _make_folder(filesystem, folder)
        file = filesystem.open_output_stream(target, compression=None)
    with ExitStack() as on_failure:  # whatever ends the block, even an interrupt, the partial file must go
        on_failure.callback(_discard, file, target, on_s3=on_s3)
        yield file
        if on_s3:  # what was there before stays if the store does not complete the upload
            on_failure.pop_all()
        with guard(uri):
            file.close()
            if local:
                filesystem.move(target, path)
        on_failure.pop_all()


def _make_folder(filesystem: fs.FileSystem, folder: str) -> None:
    try:
        filesystem.create_dir(folder, recursive=True)
    except FileNotFoundError as error:  # as below /proc; the file itself need not exist
        raise OSError(f"the folder {folder} cannot be made: write to another place") from error


def _discard(file: NativeFile, target: str, *, on_s3: bool) -> None:
    """Closes a stream whose block has failed, and removes what it wrote. The first error is the one to report."""
    try:
        file.close()  # pyarrow cannot abort an upload: this completes it
    except OSError:
        if on_s3:  # not completed: what has this name is older
            return
    with suppress(OSError):
        if on_s3:
            s3.delete_object(target)
        else:
            _LOCAL.delete_file(target)


def write_bytes(uri: str, data: bytes, *, aside: str | None = None) -> None:
    """Writes a file atomically. Creates parent folders of local paths. Raises `StorageError`.

    A local file is first written under another name: in its own folder, or in the folder `aside` (on the same file
    system) if a killed process must leave nothing next to it.
    """

    path, on_s3 = _locate(uri)

    def attempt() -> None:
        if on_s3:
            return s3.write(_object(uri, path), data)
        with _stream(uri, lambda _: nullcontext(), aside) as file:
            file.write(data)

    _with_retries(uri, attempt)


def upload(source: Path, uri: str) -> None:
    """Uploads a local file of any size, atomically. Raises `StorageError`."""

    def attempt() -> None:
        with _stream(uri, lambda _: nullcontext()) as sink, source.open("rb") as file:
            shutil.copyfileobj(file, sink, PIECE_BYTES)

    _with_retries(uri, attempt)


def exists(uri: str) -> bool:
    """Whether a file (not a folder) is there. Raises `StorageError` if the store cannot say."""
    try:
        _stat(uri)
    except MissingFileError:
        return False
    return True


def stat(uri: str) -> FileInfo:
    """Size and version of a file. Raises `StorageError` if it is missing."""
    return _stat(uri)[0]


def modified(uri: str) -> float:
    """When a file was last written by the store's clock, seconds since 1970. Raises `StorageError` if it is missing."""
    return _stat(uri)[1]


def _stat(uri: str) -> tuple[FileInfo, float]:
    path, on_s3 = _locate(uri)
    if on_s3:
        if "/" not in path:
            raise missing(uri)
        found = _with_retries(uri, lambda: s3.head(path))
        return _file_info(found), found.modified.timestamp()
    with explained(uri):
        info = _LOCAL.get_file_info(path)
    if info.type != fs.FileType.File:
        raise missing(uri)
    return FileInfo(uri=path, size=info.size, version=str(info.mtime_ns)), info.mtime_ns / 1e9


def _file_info(found: s3.ObjectInfo) -> FileInfo:
    # An object's time has whole seconds: too coarse to tell a shard from its replacement.
    return FileInfo(uri=f"s3://{found.path}", size=found.size, version=found.etag)


def list_files(uri: str, *, suffix: str = "", recursive: bool = True) -> list[FileInfo]:
    """The files below a folder, or only those right in it, whose names end in `suffix`, sorted by URI; empty where the
    folder does not exist.

    Raises `StorageError` if the bucket is missing, the store refuses, or a local name is not UTF-8.
    """
    path, on_s3 = _locate(uri)
    if on_s3:
        found = _addressable(
            _file_info(item) for item in _with_retries(uri, lambda: s3.objects_below(path, recursive=recursive))
        )
    else:
        with explained(uri):
            infos = _LOCAL.get_file_info(fs.FileSelector(path, recursive=recursive, allow_not_found=True))
            files = [it for it in infos if it.type == fs.FileType.File]
            found = [FileInfo(uri=it.path, size=it.size, version=str(it.mtime_ns)) for it in files]
    return sorted((file for file in found if file.uri.endswith(suffix)), key=lambda file: file.uri)


def _addressable(files: Iterable[FileInfo]) -> list[FileInfo]:
    """Leaves out, with a warning, the objects whose keys no canonical URI names: those with `//`, `.` or `..`."""
    kept = []
    for file in files:
        if is_canonical(file.uri):
            kept.append(file)
        else:
            logger.warning("%s is left out: its key has '//', '.' or '..': rename it", shown(file.uri))
    return kept


def list_folders(uri: str) -> list[str]:
    """The names of the folders right below a folder, sorted; empty where it does not exist. Raises `StorageError`."""
    path, on_s3 = _locate(uri)
    if on_s3:
        return _with_retries(uri, lambda: s3.folders_below(path))
    with explained(uri):
        found = _LOCAL.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)


def delete(uri: str) -> None:
    """Removes a file, or a folder with all that is below it; a missing one is not an error."""
    path, on_s3 = _locate(uri)
    if on_s3:
        return _with_retries(uri, lambda: s3.delete(_object(uri, path)))
    with explained(uri):
        kind = _LOCAL.get_file_info(path).type
        if kind == fs.FileType.File:
            _LOCAL.delete_file(path)
        elif kind == fs.FileType.Directory:
            _LOCAL.delete_dir(path)
