"""Rows of Parquet shards through a bounded cache of decoded row groups.

The order mixes samples inside a window of neighbours, so successive micro-batches want rows of the same groups. Row
groups of about `data.chunk` rows are read with the least waste.
"""

import functools
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Mapping

from blip3o import storage
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.parquet.columns import Columns
from blip3o.data.shards.parquet.samples import GroupRows, ParquetShard, Read, RowGroup
from blip3o.data.shards.sample import Stored
from blip3o.types import Member

CACHE_BYTES = 256 * 2**20
SHARDS = 256  # footers held


class RowGroupCache:
    """Decoded row groups by (URI, number), the least recently used dropped first. Threads may share it.

    `capacity` in bytes; the newest group is held whatever its size.
    """

    def __init__(self, *, capacity: int = CACHE_BYTES) -> None:
        self._capacity = capacity
        self._groups: OrderedDict[tuple[str, int], GroupRows] = OrderedDict()
        self._lock = threading.Lock()
        self._shard = functools.lru_cache(maxsize=SHARDS)(_open)

    def read(
        self, uri: str, file_bytes: int, columns: Columns, rows: Mapping[int, Member]
    ) -> dict[int, Stored | DamagedSampleError]:
        """Each of some rows of a file of `file_bytes`, or what is wrong with it; `rows` says where their groups lie.

        Raises `StorageError` if the store does not answer, or if the file was truncated: then its footer,
        and so all of it, is lost.
        """
        try:
            shard = self._shard(uri, file_bytes)
            by_group: dict[RowGroup, list[int]] = defaultdict(list)
            for row in rows:
                by_group[shard.group_of(row)].append(row)
        except DamagedSampleError as damage:
            return dict.fromkeys(rows, damage)
        found: dict[int, Stored | DamagedSampleError] = {}
        for group, wanted in by_group.items():
            found |= self._rows(uri, shard, group, columns, {row: rows[row] for row in wanted})
        return found

    def _rows(
        self, uri: str, shard: ParquetShard, group: RowGroup, columns: Columns, rows: Mapping[int, Member]
    ) -> dict[int, Stored | DamagedSampleError]:
        try:
            decoded = self._group(uri, shard, group, columns, next(iter(rows.values())))
        except DamagedSampleError as damage:
            return dict.fromkeys(rows, damage)
        return {row: _stored(decoded, row - group.first) for row in rows}

    def _group(self, uri: str, shard: ParquetShard, group: RowGroup, columns: Columns, where: Member) -> GroupRows:
        key = (uri, group.number)
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
        decoded = shard.read_group(_within(uri, where), group, columns)
        with self._lock:
            self._groups[key] = decoded
            while len(self._groups) > 1 and sum(held.nbytes for held in self._groups.values()) > self._capacity:
                self._groups.popitem(last=False)
        return decoded


def _open(uri: str, file_bytes: int) -> ParquetShard:
    return ParquetShard(lambda offset, size: storage.read_ranges(uri, [(offset, size)])[0], file_bytes)


def _within(uri: str, where: Member) -> Read:
    """Reads of parts of one range, which is fetched once; nothing lies outside."""
    data = storage.read_ranges(uri, [(where.offset, where.size)])[0]

    def read(offset: int, size: int) -> bytes:
        start = offset - where.offset
        return data[start : start + size] if start >= 0 else b""

    return read


def _stored(group: GroupRows, place: int) -> Stored | DamagedSampleError:
    try:
        return group.stored(place)
    except DamagedSampleError as damage:
        return damage
