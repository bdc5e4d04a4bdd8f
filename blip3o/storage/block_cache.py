"""Byte ranges of files through a bounded cache of aligned blocks.

The order mixes samples inside a window of neighbours, so successive micro-batches need neighbouring bytes.
Reading whole blocks once and keeping the newest ones turns dozens of small requests per micro-batch into about one.
If several readers share the micro-batches of a window, each of them needs a part of nearly every large block, so they
read smaller ones. Threads of one reader share its blocks, including those that are still being fetched.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future

from blip3o import storage
from blip3o.errors import StorageError

BLOCK_BYTES = 2**20
SHARED_BLOCK_BYTES = 2**18
CACHE_BYTES = 256 * 2**20


def block_bytes_for(readers: int) -> int:
    """The size of a block, in bytes, where this many readers share the micro-batches of a window."""
    return BLOCK_BYTES if readers <= 2 else SHARED_BLOCK_BYTES


class BlockCache:
    """Blocks of `block_bytes` by (URI, number), the least recently used dropped first. Threads may share it: while
    one of them fetches a block, the others wait for it.
    """

    def __init__(self, *, capacity: int = CACHE_BYTES, block_bytes: int = BLOCK_BYTES) -> None:
        """`capacity` is in bytes. To read every range once, it must hold what the ranges of one call span."""
        self._size = block_bytes
        self._limit = max(capacity // block_bytes, 1)
        self._blocks: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, uri: str, file_bytes: int, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each `(offset, size)` of a file of `file_bytes`, in order. Raises `StorageError` as reads do."""
        numbers = sorted({number for offset, size in ranges for number in self._spanned(offset, size)})
        awaited, missing = self._claim(uri, numbers)
        self._fetch(uri, file_bytes, missing)
        blocks = {number: block.result() for number, block in awaited.items()}
        return [self._cut(blocks, offset, size) for offset, size in ranges]

    def _claim(self, uri: str, numbers: Sequence[int]) -> tuple[dict[int, Future[bytes]], dict[int, Future[bytes]]]:
        """Futures of all these blocks, and of those that were not requested yet: the caller must fetch them."""
        awaited: dict[int, Future[bytes]] = {}
        missing: dict[int, Future[bytes]] = {}
        with self._lock:
            for number in numbers:
                block = self._blocks.pop((uri, number), None)
                if block is None:
                    block = missing[number] = Future()
                awaited[number] = self._blocks[uri, number] = block  # put last: used just now
            while len(self._blocks) > self._limit:
                self._blocks.popitem(last=False)
        return awaited, missing

    def _fetch(self, uri: str, file_bytes: int, missing: Mapping[int, Future[bytes]]) -> None:
        """Reads blocks, neighbours in one range. A failure also fails waiting threads, but no later read."""
        runs = list(_runs(sorted(missing)))
        extents = [self._extent(run, file_bytes) for run in runs]
        failure = StorageError(f"{uri}: the read was interrupted")
        try:
            for run, data in zip(runs, storage.read_ranges(uri, extents) if extents else [], strict=True):
                for position, number in enumerate(run):
                    missing[number].set_result(data[position * self._size : (position + 1) * self._size])
        except StorageError as error:
            failure = error
            raise
        finally:  # otherwise threads would wait forever for a block that is never fetched
            self._fail(uri, {number: block for number, block in missing.items() if not block.done()}, failure)

    def _fail(self, uri: str, blocks: Mapping[int, Future[bytes]], failure: StorageError) -> None:
        with self._lock:
            for number, block in blocks.items():
                if self._blocks.get((uri, number)) is block:
                    del self._blocks[uri, number]
        for block in blocks.values():
            block.set_exception(failure)

    def _spanned(self, offset: int, size: int) -> range:
        return range(offset // self._size, (offset + max(size, 1) - 1) // self._size + 1)

    def _extent(self, run: Sequence[int], file_bytes: int) -> tuple[int, int]:
        """Offset and size of a run of blocks; the last block of a file is short."""
        start = run[0] * self._size
        return start, min((run[-1] + 1) * self._size, file_bytes) - start

    def _cut(self, blocks: Mapping[int, bytes], offset: int, size: int) -> bytes:
        numbers = self._spanned(offset, size)
        start = offset - numbers[0] * self._size
        return b"".join(blocks[number] for number in numbers)[start : start + size]


def _runs(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Numbers in groups of direct neighbours, each read as one range."""
    run: list[int] = []
    for number in numbers:
        if run and number != run[-1] + 1:
            yield run
            run = []
        run.append(number)
    if run:
        yield run
