"""Byte ranges of files through a bounded cache of aligned blocks.

The order mixes samples inside a window of neighbours, so successive micro-batches want bytes that lie side by side.
Reading whole blocks once and keeping the newest ones turns dozens of small requests a micro-batch into about one.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from blip3o.data import storage

BLOCK_BYTES = 2**20
CACHE_BYTES = 256 * 2**20


class BlockCache:
    """Blocks of `BLOCK_BYTES` by (URI, number), the least recently used dropped first. Threads may share it."""

    def __init__(self, *, capacity: int = CACHE_BYTES) -> None:
        """`capacity` in bytes; at least what the ranges of one call span is needed for them to be read once."""
        self._limit = max(capacity // BLOCK_BYTES, 1)
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, uri: str, file_bytes: int, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each `(offset, size)` of a file of `file_bytes`, in order. Raises `StorageError` as reads do."""
        numbers = sorted({number for offset, size in ranges for number in _spanned(offset, size)})
        blocks = self._held(uri, numbers)
        lacking = [number for number in numbers if number not in blocks]
        runs = list(_runs(lacking))
        extents = [_extent(run, file_bytes) for run in runs]
        for run, data in zip(runs, storage.read_ranges(uri, extents) if extents else [], strict=True):
            for position, number in enumerate(run):
                blocks[number] = data[position * BLOCK_BYTES : (position + 1) * BLOCK_BYTES]
        self._keep(uri, {number: blocks[number] for number in lacking})
        return [_cut(blocks, offset, size) for offset, size in ranges]

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


def _spanned(offset: int, size: int) -> range:
    return range(offset // BLOCK_BYTES, (offset + max(size, 1) - 1) // BLOCK_BYTES + 1)


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


def _extent(run: Sequence[int], file_bytes: int) -> tuple[int, int]:
    """Offset and size of a run of blocks; the last block of a file is short."""
    start = run[0] * BLOCK_BYTES
    return start, min((run[-1] + 1) * BLOCK_BYTES, file_bytes) - start


def _cut(blocks: dict[int, bytes], offset: int, size: int) -> bytes:
    first = offset // BLOCK_BYTES
    joined = b"".join(blocks[number] for number in _spanned(offset, size))
    start = offset - first * BLOCK_BYTES
    return joined[start : start + size]
