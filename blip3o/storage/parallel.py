"""Large objects, read as parallel ranges: one connection carries about 90 MB/s, and its loss costs one range only.

Each range is retried on its own (`blip3o.storage.retry`), all of them are of one version of the object, and every byte
is written once, into the buffer that the caller gets.
"""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from blip3o.storage import s3
from blip3o.storage.retry import with_retries

T = TypeVar("T")

PART_BYTES = 32 * 2**20  # of one range; up to twice as much is one request
THREADS = 8  # of one read


def read_object(path: str, *, part_bytes: int = PART_BYTES) -> bytes:
    """The whole object `bucket/key`. Raises as `blip3o.storage.s3.read_into`, with the range that failed."""
    version = s3.Version()
    first, total = with_retries(f"s3://{path}", lambda: s3.read_start(path, 2 * part_bytes, version))
    if total == len(first):
        return first
    return _gathered(path, first, total, version, part_bytes)


def read_range(path: str, offset: int, size: int) -> bytes:
    """`size` bytes of the object from `offset` on, in parallel if they are many. Raises as above."""
    if size <= 2 * PART_BYTES:
        return with_retries(f"s3://{path}", lambda: s3.read(path, (offset, size)))
    return _gathered(path, b"", size, s3.Version(), PART_BYTES, offset=offset)


def _gathered(path: str, first: bytes, size: int, version: s3.Version, part_bytes: int, *, offset: int = 0) -> bytes:
    """`size` bytes from `offset` on, of which the first ones are there already."""
    out = io.BytesIO()  # it gives its bytes away without a copy
    out.seek(size - 1)
    out.write(b"\0")
    with out.getbuffer() as view:
        view[: len(first)] = first
        fill(path, offset + len(first), view[len(first) :], version, part_bytes=part_bytes)
    return out.getvalue()


def fill(path: str, offset: int, out: memoryview, version: s3.Version, *, part_bytes: int = PART_BYTES) -> None:
    """Reads bytes of the object from `offset` on into all of `out`, in parallel if they are many. Raises as above."""
    if len(out) <= 2 * part_bytes:
        return fill_part(path, offset, out, version)
    parts = [(start, out[start : start + part_bytes]) for start in range(0, len(out), part_bytes)]
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(lambda part: fill_part(path, offset + part[0], part[1], version), parts):
            pass


def fill_part(path: str, offset: int, out: memoryview, version: s3.Version) -> None:
    """Reads one range, with retries. Its bytes are named in the log and in errors."""
    extent = f"bytes {offset}-{offset + len(out) - 1}"
    try:
        with_retries(f"s3://{path} {extent}", lambda: s3.read_into(path, offset, out, version))
    except s3.TransientError as error:
        raise s3.TransientError(f"{extent}: {error}") from error


def read_ahead(read: Callable[[int, int], T], ranges: Iterable[tuple[int, int]], *, ahead: int) -> Iterator[T]:
    """`read(offset, size)` of each range, in order; up to `ahead` of them are read or held at once."""
    with ThreadPoolExecutor(ahead) as pool:
        reads: deque[Future[T]] = deque()
        try:
            for extent in ranges:
                reads.append(pool.submit(read, *extent))
                if len(reads) == ahead:
                    yield reads.popleft().result()
            while reads:
                yield reads.popleft().result()
        finally:
            for future in reads:
                future.cancel()
