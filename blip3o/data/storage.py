"""Every path is a URI: `s3://bucket/key`, `file:///path` or a plain path, opened through `pyarrow.fs`.

Endpoint, region and credentials of S3 come from the standard AWS chain (environment, config files, instance profile),
so any S3-compatible store works. Reads are ranged, retried on throttling and 5xx by the AWS SDK, and checked for
length. Writes become visible whole or not at all: S3 objects are atomic by themselves, local files are renamed into
place. Errors name the URI and what to do about it.
"""

import functools
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import NativeFile, fs

from blip3o import settings
from blip3o.errors import StorageError


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """One stored file: its `uri`, `size` in bytes, and a `version` that changes when its content does (mtime in ns)."""

    uri: str
    size: int
    version: str


def normalize(uri: str) -> str:
    """The canonical form of a URI: `s3://…` as it is, local paths absolute and without `file://`; no trailing slash."""
    scheme = urlsplit(uri).scheme
    if scheme == "s3":
        return uri.rstrip("/")
    if scheme in ("", "file"):
        return str(Path(uri.removeprefix("file://")).expanduser().absolute())
    raise StorageError(f"unknown scheme '{scheme}' in {uri}: use s3://bucket/key, file:///path or a plain path")


def join(uri: str, *parts: str) -> str:
    """`uri` and `parts` joined by single slashes."""
    return posixpath.join(uri.rstrip("/"), *parts)


@functools.lru_cache(maxsize=4)
def _s3(endpoint: str | None, region: str | None) -> fs.S3FileSystem:
    options: dict[str, object] = {"connect_timeout": 10, "request_timeout": 60, "allow_bucket_creation": False}
    if region:
        options["region"] = region
    if endpoint:
        scheme, _, host = endpoint.partition("://")
        options |= {"scheme": scheme, "endpoint_override": host}
    return fs.S3FileSystem(**options, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=5))


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI and the path inside it.

    Raises `StorageError` for an unknown scheme.
    """
    uri = normalize(uri)
    if not uri.startswith("s3://"):
        return fs.LocalFileSystem(), uri
    endpoint = settings.get("AWS_ENDPOINT_URL_S3") or settings.get("AWS_ENDPOINT_URL")
    return _s3(endpoint, settings.get("AWS_REGION") or settings.get("AWS_DEFAULT_REGION")), uri.removeprefix("s3://")


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turns pyarrow's errors into one line with the URI, the cause and the fix."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{uri} does not exist: check the spelling, or create it first") from error
    except (OSError, ValueError) as error:
        raise StorageError(f"{uri}: {_cause(str(error))}") from error


_CAUSES = {
    "NO_SUCH_BUCKET": "the bucket does not exist: create it, or correct its name",
    "INVALID_ACCESS_KEY_ID": "the store does not know this access key: check AWS_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH": "the store rejects the signature: check AWS_SECRET_ACCESS_KEY",
    "ACCESS_DENIED": "access denied: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy",
    "NETWORK_CONNECTION": "the store does not answer: check AWS_ENDPOINT_URL and that the store is up",
    "curlCode: 7": "the store does not answer: check AWS_ENDPOINT_URL and that the store is up",
}


def _cause(message: str) -> str:
    for mark, explanation in _CAUSES.items():
        if mark in message:
            return explanation
    return " ".join(message.split())[:300]


def read_bytes(uri: str) -> bytes:
    """The whole content of a file. Raises `StorageError` if it is missing or cannot be read."""
    filesystem, path = resolve(uri)
    with _explained(uri), filesystem.open_input_file(path) as file:
        return file.read()


class RangeReader:
    """One file held open, for many reads of parts of it."""

    def __init__(self, uri: str, file: NativeFile) -> None:
        self._uri, self._file = uri, file
        self.size: int = file.size()

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on. Raises `StorageError` if the file is shorter, or cannot be read."""
        with _explained(self._uri):
            part = self._file.read_at(size, min(offset, self.size))
        if len(part) != size:
            raise StorageError(
                f"{self._uri}: asked {size} bytes at {offset}, got {len(part)}: the file was cut or replaced; index it "
                "again"
            )
        return part


@contextmanager
def open_ranges(uri: str) -> Iterator[RangeReader]:
    """A file open for reading ranges. Raises `StorageError` if it is missing."""
    filesystem, path = resolve(uri)
    with _explained(uri):
        file = filesystem.open_input_file(path)
    with file:
        yield RangeReader(uri, file)


def read_ranges(uri: str, ranges: list[tuple[int, int]]) -> list[bytes]:
    """The bytes of each `(offset, size)` of one file, in the order given.

    Raises `StorageError` if the file is missing, or shorter than a range says.
    """
    with open_ranges(uri) as file:
        return [file.read(offset, size) for offset, size in ranges]


@contextmanager
def open_write(uri: str) -> Iterator[NativeFile]:
    """A stream to a file that is there whole when the block ends. Parent folders of local paths are made.

    If the block fails, a local file is left as it was; an object store may be left with a cut object, so that whatever
    vouches for the file must be written after it. Raises `StorageError` if the store refuses.
    """
    filesystem, path = resolve(uri)
    local = isinstance(filesystem, fs.LocalFileSystem)
    # A name of its own: several processes may write one file at a time, as they do with ledgers.
    target = f"{path}.{uuid.uuid4().hex}.partial" if local else path
    with _explained(uri):
        if local:
            filesystem.create_dir(posixpath.dirname(path), recursive=True)
        file = filesystem.open_output_stream(target)
    try:
        yield file
    except BaseException:  # an interrupt too: whatever ended the block, its half-written file must not stay
        with suppress(OSError):  # what went wrong first is what is told
            file.close()
            if local:
                filesystem.delete_file(target)
        raise
    with _explained(uri):
        file.close()
        if local:
            filesystem.move(target, path)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a file whole or not at all. Parent folders of local paths are made."""
    with open_write(uri) as file, _explained(uri):
        file.write(data)


def exists(uri: str) -> bool:
    """Whether a file (not a folder) is there. Raises `StorageError` if the store cannot say."""
    filesystem, path = resolve(uri)
    with _explained(uri):
        return filesystem.get_file_info(path).type == fs.FileType.File


def stat(uri: str) -> FileInfo:
    """Size and version of a file. Raises `StorageError` if it is missing."""
    filesystem, path = resolve(uri)
    with _explained(uri):
        info = filesystem.get_file_info(path)
    if info.type != fs.FileType.File:
        raise StorageError(f"{uri} does not exist: check the spelling, or create it first")
    return FileInfo(uri=normalize(uri), size=info.size, version=str(info.mtime_ns))


def list_files(uri: str, *, suffix: str = "") -> list[FileInfo]:
    """All files below a folder whose names end in `suffix`, sorted by URI; empty where the folder does not exist.

    Raises `StorageError` if the bucket is missing or the store refuses.
    """
    filesystem, path = resolve(uri)
    prefix = "s3://" if not isinstance(filesystem, fs.LocalFileSystem) else ""
    if prefix:
        _require_bucket(uri, filesystem, path)
    with _explained(uri):
        found = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    files = [i for i in found if i.type == fs.FileType.File and i.path.endswith(suffix)]
    return sorted(
        (FileInfo(uri=prefix + i.path, size=i.size, version=str(i.mtime_ns)) for i in files), key=lambda f: f.uri
    )


def _require_bucket(uri: str, filesystem: fs.FileSystem, path: str) -> None:
    bucket = path.split("/", 1)[0]
    with _explained(uri):
        found = filesystem.get_file_info(bucket).type
    if found == fs.FileType.NotFound:
        raise StorageError(f"{uri}: the bucket '{bucket}' does not exist: create it, or correct its name")


def delete(uri: str) -> None:
    """Removes a file, or a folder with all that is below it; a missing one is no error."""
    filesystem, path = resolve(uri)
    with _explained(uri):
        kind = filesystem.get_file_info(path).type
        if kind == fs.FileType.File:
            filesystem.delete_file(path)
        elif kind == fs.FileType.Directory:
            filesystem.delete_dir(path)
