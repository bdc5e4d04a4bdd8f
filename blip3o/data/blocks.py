"""Byte ranges of files through a bounded cache of aligned blocks.

The order mixes samples inside a window of neighbours, so successive micro-batches want bytes that lie side by side.
Reading whole blocks once and keeping the newest ones turns dozens of small requests a micro-batch into about one. Where
several readers share the micro-batches of a window, each of them wants a part of nearly every large block: they read
smaller ones.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from blip3o.data import storage

BLOCK_BYTES = 2**20
SHARED_BLOCK_BYTES = 2**18
CACHE_BYTES = 256 * 2**20


def block_bytes_for(readers: int) -> int:
    """The size of a block, in bytes, where so many readers share the micro-batches of a window."""
    return BLOCK_BYTES if readers <= 2 else SHARED_BLOCK_BYTES


class BlockCache:
    """Blocks of `block_bytes` by (URI, number), the least recently used dropped first. Threads may share it."""

    def __init__(self, *, capacity: int = CACHE_BYTES, block_bytes: int = BLOCK_BYTES) -> None:
        """`capacity` in bytes; at least what the ranges of one call span is needed for them to be read once."""
        self._size = block_bytes
        self._limit = max(capacity // block_bytes, 1)
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, uri: str, file_bytes: int, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each `(offset, size)` of a file of `file_bytes`, in order. Raises `StorageError` as reads do."""
        numbers = sorted({number for offset, size in ranges for number in self._spanned(offset, size)})
        blocks = self._held(uri, numbers)
        lacking = [number for number in numbers if number not in blocks]
        runs = list(_runs(lacking))
        extents = [self._extent(run, file_bytes) for run in runs]
        for run, data in zip(runs, storage.read_ranges(uri, extents) if extents else [], strict=True):
            for position, number in enumerate(run):
                blocks[number] = data[position * self._size : (position + 1) * self._size]
        self._keep(uri, {number: blocks[number] for number in lacking})
        return [self._cut(blocks, offset, size) for offset, size in ranges]

    def _held(self, uri: str, numbers: Sequence[int]) -> dict[int, bytes]:
        with self._lock:
            held = [number for number in numbers if (uri, number) in self._blocks]
            for number in held:
                self._blocks.move_to_end((uri, number))
            return {number: self._blocks[uri, number] for number in held}

    def _keep(self, uri: str, blocks: dict[int, bytes]) -> None:
        with self._lock:
            for number, data in blocks.items():
                self._blocks[uri, number] = data
            while len(self._blocks) > self._limit:
                self._blocks.popitem(last=False)

    def _spanned(self, offset: int, size: int) -> range:
        return range(offset // self._size, (offset + max(size, 1) - 1) // self._size + 1)

    def _extent(self, run: Sequence[int], file_bytes: int) -> tuple[int, int]:
        """Offset and size of a run of blocks; the last block of a file is short."""
        start = run[0] * self._size
        return start, min((run[-1] + 1) * self._size, file_bytes) - start

    def _cut(self, blocks: dict[int, bytes], offset: int, size: int) -> bytes:
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
