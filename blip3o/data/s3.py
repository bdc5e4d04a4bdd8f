"""Reads of S3 objects: what comes back is what was asked, or it is an error.

pyarrow's own ranged read cannot promise that. If a store answers a range with fewer bytes than were asked, as it does
for an object that was replaced by a shorter one, it returns the full length all the same, the rest being memory that
nobody wrote (seen with pyarrow 26). Here the length is checked against what was asked and what the store says it has.
One attempt a call: trying again is `blip3o.data.retry`'s business.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blip3o import settings
from blip3o.errors import StorageError

if TYPE_CHECKING:
    from botocore.client import BaseClient

CONNECT_TIMEOUT_S = 10
# Seconds without a byte after which a request is given up.
STALL_TIMEOUT_S = 30.0
MAX_CONNECTIONS = 32  # of one process; readers ask for a few at a time
_TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
_GONE_CODES = {"NoSuchKey", "404"}


class TransientError(OSError):
    """The store or the way to it failed in a way that may be over in a moment."""


class _NoRangeError(OSError):
    """The object has no byte of the range that was asked for."""


class CutFileError(StorageError):
    """A file is shorter than what was asked of it: it was cut, or replaced by another."""


def endpoint() -> str | None:
    """The store's address in the environment; None for AWS itself."""
    return settings.get("AWS_ENDPOINT_URL_S3") or settings.get("AWS_ENDPOINT_URL")


def region() -> str | None:
    """The region in the environment."""
    return settings.get("AWS_REGION") or settings.get("AWS_DEFAULT_REGION")


def stall_timeout() -> float:
    """Seconds without a byte after which a request is given up: `BLIP3O_STORE_TIMEOUT_S`, else 30."""
    return float(settings.get("BLIP3O_STORE_TIMEOUT_S") or STALL_TIMEOUT_S)


def _client() -> "BaseClient":
    return _made(endpoint(), region(), stall_timeout())


@functools.lru_cache(maxsize=4)
def _made(address: str | None, where: str | None, timeout_s: float) -> "BaseClient":
    import boto3
    from botocore.config import Config

    # A session of its own: the default one must not be used from two threads while it makes a client.
    return boto3.session.Session().client(
        "s3",
        endpoint_url=address,
        region_name=where,
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=timeout_s,
            max_pool_connections=MAX_CONNECTIONS,
            retries={"total_max_attempts": 1},
            proxies={},
            s3={"addressing_style": "path" if address else "auto"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def forget() -> None:
    """Drops the clients: the next read takes credentials from the environment anew."""
    _made.cache_clear()


def read(path: str, extent: tuple[int, int] | None = None) -> bytes:
    """The object `bucket/key`, or `extent` (offset, size) of it.

    Raises `TransientError`, `CutFileError` if the object ends before the extent does, `FileNotFoundError`, and
    `OSError` where the store refuses.
    """
    if extent is not None and extent[1] == 0:
        return b""
    answer, data = _get(path, extent)
    # `bytes 0-99/1234`; a store that ignores ranges sends the whole object, without this line.
    total = int(answer.get("ContentRange", "/-1").rpartition("/")[2])
    if extent is None:
        if len(data) != (total if total >= 0 else len(data)):
            raise TransientError(f"asked {total} bytes, got {len(data)}")
        return data
    offset, size = extent
    if 0 <= total < offset + size:
        raise cut(f"s3://{path}", offset, size, total)
    if len(data) != size or total < 0:
        raise TransientError(f"asked {size} bytes at {offset}, got {len(data)}")
    return data


def cut(uri: str, offset: int, size: int, total: int | None) -> CutFileError:
    """The error for a range beyond the end of a file of `total` bytes (None where the store does not say)."""
    has = "fewer" if total is None else total
    return CutFileError(
        f"{uri}: asked {size} bytes at {offset}, the file has {has}: it was cut or replaced; index it again"
    )


def _get(path: str, extent: tuple[int, int] | None) -> tuple[dict[str, Any], bytes]:
    bucket, _, key = path.partition("/")
    # The whole is asked for as a range too: only then does the answer say how much the store holds.
    wanted = "bytes=0-" if extent is None else f"bytes={extent[0]}-{sum(extent) - 1}"
    try:
        with _refusals(path, extent):
            answer = _client().get_object(Bucket=bucket, Key=key, Range=wanted)
            return answer, answer["Body"].read()
    except _NoRangeError:
        return {}, b""  # an empty object has no range


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """An object `bucket/key`, its `size` in bytes, and its `etag`, which is another one when the bytes are."""

    path: str
    size: int
    etag: str


def head(path: str) -> ObjectInfo:
    """What the store says of the object `bucket/key`. Raises as `read` does."""
    bucket, _, key = path.partition("/")
    with _refusals(path):
        answer = _client().head_object(Bucket=bucket, Key=key)
    return ObjectInfo(path=path, size=answer["ContentLength"], etag=answer["ETag"].strip('"'))


def objects_below(path: str) -> list[ObjectInfo]:
    """All objects below `bucket/folder`, or in a whole bucket, by name. Raises as `read` does."""
    bucket, _, folder = path.partition("/")
    with _refusals(path):
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder and f"{folder}/")
        found = [entry for page in pages for entry in page.get("Contents", ())]
    # A key that ends with a slash stands for a folder.
    return [
        ObjectInfo(path=f"{bucket}/{entry['Key']}", size=entry["Size"], etag=entry["ETag"].strip('"'))
        for entry in sorted(found, key=lambda entry: entry["Key"])
        if not entry["Key"].endswith("/")
    ]


@contextmanager
def _refusals(path: str, extent: tuple[int, int] | None = None) -> Iterator[None]:
    """Turns boto3's errors into what `read` raises."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError as error:
        raise OSError("no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile") from error
    except BotoCoreError as error:  # all others that a request can meet are of the connection
        raise TransientError(str(error)) from error
    except ClientError as error:
        raise _refusal(error, path, extent) from error


def _refusal(error: Any, path: str, extent: tuple[int, int] | None) -> Exception:  # noqa: ANN401 - a ClientError
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    code = error.response["Error"]["Code"]
    if code == "InvalidRange" and extent is not None:
        return cut(f"s3://{path}", *extent, error.response["Error"].get("ActualObjectSize"))
    if code == "InvalidRange":
        return _NoRangeError(str(error))
    if code in _GONE_CODES:
        return FileNotFoundError(path)
    kind = TransientError if status >= 500 or status == 429 or code in _TRANSIENT_CODES else OSError
    return kind(str(error))
