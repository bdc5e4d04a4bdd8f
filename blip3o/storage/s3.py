"""Requests for S3 objects by boto3: they return exactly what was asked for, or raise.

pyarrow's own ranged read cannot promise that. If a store answers a range with fewer bytes than requested, as it does
for an object that was replaced by a shorter one, pyarrow still returns the full length, and the rest is uninitialised
memory (seen with pyarrow 26). Here the length is checked against the request and the size that the store reports.
Each call makes one attempt; `blip3o.storage.retry` retries it. `blip3o.storage.s3_connection` says where requests go.
"""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from blip3o.errors import StorageError, one_line
from blip3o.storage.s3_connection import Connection, connection

_TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
_GONE_CODES = {"NoSuchKey", "404"}
_REGION_CODES = {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "301", "302", "307"}
READ_BYTES = 2**20  # of a body, at once
DELETED_AT_ONCE = 1000  # the most that S3 takes in a request


class TransientError(OSError):
    """A transient failure of the store, or of the connection to it.

    `wait_s`: seconds that the server asks to wait (0: it does not say).
    """

    def __init__(self, message: str, *, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class _NoRangeError(OSError):
    """The object has no byte of the requested range."""


class TruncatedFileError(StorageError):
    """A file is too short for the requested range: it was truncated or replaced."""


class ReplacedFileError(StorageError):
    """A file that was replaced by another one while it was read in parts."""


class Version:
    """The version of an object that all reads of it must have: the one that the first answer names, by its ETag.

    Threads may share it. A store without ETags cannot tell versions apart.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._etag: str | None = None

    @property
    def condition(self) -> dict[str, str]:
        """The parameter of a request that makes the store refuse another version."""
        return {"IfMatch": self._etag} if self._etag else {}

    def require(self, answer: dict[str, Any], path: str) -> None:
        """Raises `ReplacedFileError` if an answer comes from another version than the first one."""
        with self._lock:
            self._etag = self._etag or answer.get("ETag")
            if answer.get("ETag") != self._etag:
                raise _replaced(path)


def read(path: str, extent: tuple[int, int]) -> bytes:
    """The bytes of `extent` (offset, size) of the object `bucket/key`.

    Raises `TransientError`, `TruncatedFileError` if the object ends before the extent does, `FileNotFoundError`, and
    `OSError` where the store refuses.
    """
    if extent[1] == 0:
        return b""
    with _requested(path, extent) as answer:
        return bytes(answer["Body"].read())


def read_into(path: str, offset: int, out: memoryview, version: Version) -> None:
    """Reads the bytes of the object from `offset` on into all of `out`.

    Raises as `read`, and `ReplacedFileError` if the object has another version.
    """
    with _requested(path, (offset, len(out)), version) as answer, closing(answer["Body"]) as body:
        done = 0
        while done < len(out):
            piece = body.read(min(READ_BYTES, len(out) - done))
            if not piece:
                raise TransientError(f"asked {len(out)} bytes at {offset}, got {done}")
            out[done : done + len(piece)] = piece
            done += len(piece)


def read_start(path: str, size: int, version: Version) -> tuple[bytes, int]:
    """The first `size` bytes of the object, or all where it has fewer, and its size. Raises as `read`."""
    bucket, _, key = path.partition("/")
    try:
        with _refusals(path) as store:
            answer = store.client.get_object(Bucket=bucket, Key=key, Range=f"bytes=0-{size - 1}")
            data = answer["Body"].read()
    except _NoRangeError:
        return b"", 0  # an empty object has no range
    version.require(answer, path)
    total = _total(answer)
    if total < 0:  # a store that ignores ranges sends the whole object
        return data, len(data)
    if len(data) != min(size, total):
        raise TransientError(f"asked {min(size, total)} bytes, got {len(data)}")
    return data, total


def truncated(uri: str, offset: int, size: int, total: int | None) -> TruncatedFileError:
    """The error for a range beyond the end of a file of `total` bytes (None where the store does not say)."""
    has = "fewer" if total is None else total
    return TruncatedFileError(
        f"{uri}: asked {size} bytes at {offset}, the file has {has}: it was truncated or replaced; index it again"
    )


def _replaced(path: str) -> ReplacedFileError:
    return ReplacedFileError(f"s3://{path} was replaced while it was read: read it again")


def _total(answer: dict[str, Any]) -> int:
    """The object's size by an answer to a range, `bytes 0-99/1234`; -1 where the store does not say."""
    return int(answer.get("ContentRange", "/-1").rpartition("/")[2])


@contextmanager
def _requested(path: str, extent: tuple[int, int], version: Version | None = None) -> Iterator[dict[str, Any]]:
    """The answer to a request for a range, of the right length by its headers; errors become what `read` raises."""
    (bucket, _, key), (offset, size) = path.partition("/"), extent
    wanted: dict[str, str] = {"Range": f"bytes={offset}-{offset + size - 1}"} | (version.condition if version else {})
    with _refusals(path, extent) as store:
        answer = store.client.get_object(Bucket=bucket, Key=key, **wanted)
        total = _total(answer)
        if 0 <= total < offset + size:
            raise truncated(f"s3://{path}", offset, size, total)
        if total < 0 or answer["ContentLength"] != size:
            raise TransientError(f"asked {size} bytes at {offset}, got {answer['ContentLength']}")
        if version:
            version.require(answer, path)
        yield answer


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """An object `bucket/key`, its `size` in bytes, when it was `modified`, and its `etag`, which changes with
    the bytes."""

    path: str
    size: int
    etag: str
    modified: datetime


def head(path: str) -> ObjectInfo:
    """What the store says of the object `bucket/key`. Raises as `read` does."""
    bucket, _, key = path.partition("/")
    with _refusals(path) as store:
        answer = store.client.head_object(Bucket=bucket, Key=key)
    modified = answer["LastModified"]
    # A few stores have no ETags: the time, in whole seconds, must do.
    etag = answer["ETag"].strip('"') if "ETag" in answer else modified.isoformat()
    return ObjectInfo(path=path, size=answer["ContentLength"], etag=etag, modified=modified)


def objects_below(path: str, *, recursive: bool = True) -> list[ObjectInfo]:
    """The objects below `bucket/folder` or in a whole bucket, or only those right in it, by name. Raises as `read`."""
    bucket, _, _ = path.partition("/")
    found = _listed(path, "Contents") if recursive else _listed(path, "Contents", Delimiter="/")
    entries = sorted(found, key=lambda entry: entry["Key"])
    # A key that ends with a slash stands for a folder.
    return [_object_info(f"{bucket}/{entry['Key']}", entry) for entry in entries if not entry["Key"].endswith("/")]


def folders_below(path: str) -> list[str]:
    """The names of the folders right below `bucket/folder`, sorted. Raises as `read` does."""
    return sorted(entry["Prefix"].split("/")[-2] for entry in _listed(path, "CommonPrefixes", Delimiter="/"))


def _object_info(path: str, entry: dict[str, Any]) -> ObjectInfo:
    if "ETag" not in entry:
        return head(path)
    return ObjectInfo(path=path, size=entry["Size"], etag=entry["ETag"].strip('"'), modified=entry["LastModified"])


def _listed(path: str, kind: str, **options: str) -> list[dict[str, Any]]:
    """The entries of one kind of all pages of a listing."""
    bucket, _, folder = path.partition("/")
    found: list[dict[str, Any]] = []
    with _refusals(path) as store:
        pages = store.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, Prefix=folder and f"{folder}/", **options):
            if "IsTruncated" not in page:  # HTML, say, is read as a listing of nothing
                raise OSError("the answer is no listing of an S3 store: check AWS_ENDPOINT_URL and its port")
            found += page.get(kind, ())
    return found


def write(path: str, data: bytes) -> None:
    """Creates or replaces the object `bucket/key`, atomically. Raises as `read` does."""
    bucket, _, key = path.partition("/")
    with _refusals(path) as store:
        store.client.put_object(Bucket=bucket, Key=key, Body=data)


def delete_object(path: str) -> None:
    """Removes the object `bucket/key`, and nothing below it; a missing one is not an error. Raises as `read` does."""
    bucket, _, key = path.partition("/")
    with _refusals(path) as store:
        store.client.delete_object(Bucket=bucket, Key=key)


def delete(path: str) -> None:
    """Removes the object `bucket/key`, or, where there is none, all that is below it. Raises as `read` does."""
    bucket, _, key = path.partition("/")
    try:
        head(path)
        keys = [key]
    except FileNotFoundError:
        keys = [entry["Key"] for entry in _listed(path, "Contents")]
    for start in range(0, len(keys), DELETED_AT_ONCE):
        some = [{"Key": key} for key in keys[start : start + DELETED_AT_ONCE]]
        with _refusals(path) as store:
            wanted = {"Objects": some, "Quiet": True}
            answer = store.client.delete_objects(Bucket=bucket, Delete=wanted)
        for failure in answer.get("Errors", ()):
            raise OSError(f"{failure['Key']} cannot be deleted: {failure.get('Code')} {failure.get('Message')}")


@contextmanager
def _refusals(path: str, extent: tuple[int, int] | None = None) -> Iterator[Connection]:
    """The connection for one request; boto3's errors become what `read` raises."""
    from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

    store = connection()
    try:
        yield store
    except ParamValidationError as error:
        raise OSError(one_line(error)) from error
    except BotoCoreError as error:
        raise _failure(error, store) from error
    except ClientError as error:
        store.answered.set()
        raise _refusal(error, path, extent) from error
    store.answered.set()


def _failure(error: Exception, store: Connection) -> OSError:
    """The error for a request without a response: most often one that a retry may fix."""
    where = f"{store.address.scheme}://{store.address.host}"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return OSError(f"the certificate of {where} is not trusted here: set AWS_CA_BUNDLE to that of its authority")
    if "WRONG_VERSION_NUMBER" in str(error):
        return OSError(f"{where} does not speak TLS: write http:// in AWS_ENDPOINT_URL")
    # AWS is asked because no endpoint is set. What was reached before may be reached again.
    if store.endpoint is None and not store.answered.is_set() and _is_of_a_connection(error):
        told = f"no endpoint is set, and {where}"
        if _is_of_a_name(error):
            return OSError(f"{told} is not known here: set AWS_ENDPOINT_URL, or check the network")
        # Keys that AWS hands out and renews are meant for AWS itself. Its network may come up later than a process in
        # it, and among many workers some connections time out.
        if not store.expires:
            return OSError(f"{told} cannot be reached: set AWS_ENDPOINT_URL, or check the network")
    return TransientError(str(error))


def _is_of_a_connection(error: Exception) -> bool:
    from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError

    return isinstance(error, ConnectTimeoutError | EndpointConnectionError)


def _is_of_a_name(error: BaseException | None) -> bool:
    """Whether the cause of an error is a host name that could not be resolved."""
    while error is not None and not isinstance(error, socket.gaierror):
        error = error.__cause__ or error.__context__
    return error is not None


def _refusal(error: Any, path: str, extent: tuple[int, int] | None) -> Exception:  # noqa: ANN401 - a ClientError
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    code = error.response["Error"]["Code"]
    if code == "InvalidRange" and extent is not None:
        return truncated(f"s3://{path}", *extent, error.response["Error"].get("ActualObjectSize"))
    if code == "InvalidRange":
        return _NoRangeError(str(error))
    if code == "PreconditionFailed":
        return _replaced(path)
    if code in _GONE_CODES:
        return FileNotFoundError(path)
    if code in _REGION_CODES:
        return OSError(_elsewhere(error, path.partition("/")[0]))
    kind = TransientError if status >= 500 or status == 429 or code in _TRANSIENT_CODES else OSError
    return kind(str(error))


def _elsewhere(error: Any, bucket: str) -> str:  # noqa: ANN401 - a ClientError
    details, headers = error.response["Error"], error.response["ResponseMetadata"].get("HTTPHeaders", {})
    named = re.search("expecting '([^']+)'", details.get("Message", ""))
    region = details.get("Region") or headers.get("x-amz-bucket-region") or (named and named[1])
    if region:
        return f"the bucket '{bucket}' is in region '{region}': set AWS_REGION={region}"
    return f"the bucket '{bucket}' is in another region or at another endpoint: set AWS_REGION or AWS_ENDPOINT_URL"
