"""Samples from shards by ranged reads, and the rule for a sample that turns out to be damaged.

A reader belongs to one process and is not pickled. It asks the store for what the samples need and little more:
members that lie close together are read in one go, shards are read in parallel by a few threads. Tars are read by
members, Parquet files by row groups; both give the same samples.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from blip3o import storage
from blip3o.data.order.sample_order import SourceRows
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.ledger import Ledger
from blip3o.data.shards.manifest import Manifest, ShardIndex, ShardRow, read_shard_index
from blip3o.data.shards.parquet.columns import Columns
from blip3o.data.shards.parquet.rows import RowGroupCache
from blip3o.data.shards.sample import SampleMembers, Stored, choose_members, decode_words
from blip3o.data.shards.scan_result import span
from blip3o.errors import DataError
from blip3o.rng import numpy_generator
from blip3o.storage.block_cache import BLOCK_BYTES, BlockCache
from blip3o.storage.s3 import TruncatedFileError
from blip3o.types import Member, RawSample, SampleRef, sample_uid

GAP_BYTES = 64 * 2**10  # a gap between two members is read too if it is smaller than this
RANGE_BYTES = 4 * 2**20  # and the range does not grow beyond this
REPLACEMENT_TRIES = 8

T = TypeVar("T")
Range = tuple[int, int]  # offset, size
Group = list[Member]  # members that are read in one range
ReadResult = Stored | DamagedSampleError


@dataclass(frozen=True, kw_only=True)
class ParquetLocation:
    """A row of a Parquet file: its number, the `columns` that make a sample, and the `group` as a byte range."""

    row: int
    columns: Columns
    group: Member

    def all(self) -> list[Member]:
        """The row group."""
        return [self.group]


@dataclass(frozen=True, kw_only=True)
class SampleLocation:
    """Where a sample lies: its `uid`, the shard's file, its members there, or its row."""

    uid: str
    key: str
    file: ShardRow
    members: SampleMembers | ParquetLocation

    @property
    def span(self) -> Range:
        """The byte range from its first to its last byte."""
        return span(self.members.all())


class ShardReader:
    """Reads samples of some sources; `manifests` in the order of the recipe's sources.

    `sources` are the rows that may be used, in the same order: those that the manifests call good, if left out.
    `threads` read at once; `indexes` shard indexes are held (about 100 bytes a sample). Tars are read in blocks of
    `block_bytes`.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        *,
        sources: Sequence[SourceRows] | None = None,
        threads: int = 4,
        indexes: int = 256,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self.manifests = tuple(manifests)
        self._sources = sources
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="shard-reader")
        self._blocks = BlockCache(block_bytes=block_bytes)
        self._rows = RowGroupCache()
        self._index = functools.lru_cache(maxsize=indexes)(self._read_index)

    def _read_index(self, source: int, shard: int) -> ShardIndex:
        return read_shard_index(self.manifests[source], shard)

    def good_rows(self, source: int, shard: int) -> np.ndarray:
        """The rows of a shard that may be used, sorted."""
        if self._sources is not None:
            return self._sources[source].good_rows(shard)
        row = self.manifests[source].shards[shard]
        return np.setdiff1d(np.arange(row.rows), row.bad_rows)

    def uid(self, ref: SampleRef) -> str:
        """The name of the sample in a slot."""
        return sample_uid(self.manifests[ref.source].name, ref.shard, ref.row)

    def locate(self, ref: SampleRef) -> SampleLocation:
        """Where a sample lies. Raises `DamagedSampleError` if it has no image or no caption (a bad row)."""
        index = self._index(ref.source, ref.shard)
        members = index.members(ref.row)
        return SampleLocation(
            uid=self.uid(ref),
            key=index.key(ref.row),
            file=self.manifests[ref.source].shards[ref.shard],
            members=choose_members(members, index.names)
            if index.columns is None
            else ParquetLocation(row=ref.row, columns=index.columns, group=members[0]),
        )

    def fetch(self, refs: Sequence[SampleRef]) -> list[RawSample]:
        """The samples in the order of `refs`. Raises `DamagedSampleError` at the first that is damaged."""
        found = self.fetch_each(refs)
        for item in found:
            if isinstance(item, DamagedSampleError):
                raise item
        return [item for item in found if isinstance(item, RawSample)]

    def fetch_each(self, refs: Sequence[SampleRef]) -> list[RawSample | DamagedSampleError]:
        """For each ref its sample, or what is wrong with it: bad text, or bytes that are no longer in the shard.

        Raises `StorageError` if the store does not answer or a shard is gone: that is not a sample's fault.
        """
        places = [self.locate(ref) for ref in refs]
        contents, rows = self._read_members(places), self._read_rows(places)
        found = [_stored(place, contents) if place.uid not in rows else rows[place.uid] for place in places]
        return [_sample(*item) for item in zip(refs, places, found, strict=True)]

    def _read_rows(self, places: Sequence[SampleLocation]) -> dict[str, ReadResult]:
        """Samples of Parquet files by uid, files in parallel."""
        by_file: dict[str, list[SampleLocation]] = defaultdict(list)
        for place in places:
            if isinstance(place.members, ParquetLocation):
                by_file[place.file.uri].append(place)

        def read(wanted: list[SampleLocation]) -> dict[str, ReadResult]:
            file, at = wanted[0].file, [(place.uid, place.members) for place in wanted]
            uids = {where.row: uid for uid, where in at if isinstance(where, ParquetLocation)}
            groups = {where.row: where.group for _, where in at if isinstance(where, ParquetLocation)}
            columns = next(where.columns for _, where in at if isinstance(where, ParquetLocation))
            found = self._rows.read(file.uri, file.size, columns, groups)
            return {uids[row]: sample for row, sample in found.items()}

        return {uid: sample for part in self._pool.map(read, by_file.values()) for uid, sample in part.items()}

    def _read_members(self, places: Sequence[SampleLocation]) -> dict[tuple[str, Member], bytes]:
        """The bytes of every member by (URI, member); without those that a truncated shard has lost."""
        wanted: dict[str, set[Member]] = defaultdict(set)
        files: dict[str, ShardRow] = {}
        for place in places:
            if isinstance(place.members, SampleMembers):
                wanted[place.file.uri].update(place.members.all())
                files[place.file.uri] = place.file
        plans = {uri: coalesce(members) for uri, members in wanted.items()}
        share = -(-sum(map(len, plans.values())) // self._threads)
        jobs = [
            (files[uri], plan[start : start + share])
            for uri, plan in plans.items()
            for start in range(0, len(plan), share)
        ]
        contents: dict[tuple[str, Member], bytes] = {}
        for (file, _), parts in zip(jobs, self._pool.map(lambda job: self._read_groups(*job), jobs), strict=True):
            contents |= {(file.uri, member): data for member, data in parts.items()}
        return contents

    def _read_groups(self, file: ShardRow, groups: list[Group]) -> dict[Member, bytes]:
        ranges = [span(group) for group in groups]
        try:
            return _slices(groups, self._blocks.read(file.uri, file.size, ranges))
        except TruncatedFileError:
            size = storage.stat(file.uri).size
            if size >= file.size:
                raise
        # The shard was truncated after it was indexed: what is still there is still good.
        whole = [[member for member in group if member.offset + member.size <= size] for group in groups]
        kept = [group for group in whole if group]
        return _slices(kept, storage.read_ranges(file.uri, [span(group) for group in kept]))


def _stored(place: SampleLocation, contents: dict[tuple[str, Member], bytes]) -> ReadResult:
    members, uri = place.members, place.file.uri
    assert isinstance(members, SampleMembers)
    if any((uri, member) not in contents for member in members.all()):
        return DamagedSampleError("truncated: the shard is shorter than when it was indexed")
    return Stored(
        image=contents[uri, members.image],
        caption=contents[uri, members.caption] if members.caption else None,
        record=contents[uri, members.record] if members.record else None,
    )


def _sample(ref: SampleRef, place: SampleLocation, found: ReadResult) -> RawSample | DamagedSampleError:
    if isinstance(found, DamagedSampleError):
        return found
    try:
        words = decode_words(found)
    except DamagedSampleError as damage:
        return damage
    return RawSample(
        uid=place.uid,
        key=place.key,
        pass_index=ref.pass_index,
        image=found.image,
        caption=words.caption,
        meta=words.record,
    )


def coalesce(members: set[Member]) -> list[Group]:
    """Members of one file in groups of neighbours, each read as one range: see `GAP_BYTES` and `RANGE_BYTES`."""
    groups: list[Group] = []
    for member in sorted(members, key=lambda member: member.offset):
        start, size = span(groups[-1]) if groups else (0, 0)
        near = member.offset - (start + size) < GAP_BYTES
        if groups and near and member.offset + member.size - start <= RANGE_BYTES:
            groups[-1].append(member)
        else:
            groups.append([member])
    return groups


def _slices(groups: list[Group], parts: Sequence[bytes]) -> dict[Member, bytes]:
    """Members sliced out of the bytes of their groups' ranges; a group is sorted by offset."""
    return {
        member: data[member.offset - group[0].offset : member.offset - group[0].offset + member.size]
        for group, data in zip(groups, parts, strict=True)
        for member in group
    }


def load_samples(
    refs: Sequence[SampleRef], reader: ShardReader, validate: Callable[[RawSample], T], ledger: Ledger
) -> list[T]:
    """`validate(sample)` for every ref, in order.

    A sample that is damaged, or that `validate` refuses with a `DataError`, goes to the ledger, and another takes its
    slot: good rows of the same shard in an order that depends only on the refused sample's uid. The replacement comes
    under its own uid with the slot's pass, so a draw for (uid, pass_index) is that of the sample really used. Raises
    `DataError` if `REPLACEMENT_TRIES` replacements are damaged too; errors of the store are passed on.
    """
    return [
        _accept(ref, found, reader, validate, ledger) for ref, found in zip(refs, reader.fetch_each(refs), strict=True)
    ]


def _accept(
    ref: SampleRef,
    found: RawSample | DamagedSampleError,
    reader: ShardReader,
    validate: Callable[[RawSample], T],
    ledger: Ledger,
) -> T:
    for candidate in itertools.chain([ref], _replacements(ref, reader)):
        sample = found if candidate is ref else reader.fetch_each([candidate])[0]
        try:
            if isinstance(sample, DamagedSampleError):
                raise sample
            return validate(sample)
        except DataError as error:
            place = reader.locate(candidate)
            offset, size = place.span
            ledger.record(uid=place.uid, uri=place.file.uri, offset=offset, size=size, reason=str(error))
    raise DataError(
        f"{reader.uid(ref)} is damaged, and so is all that could replace it (at most {REPLACEMENT_TRIES} samples of "
        f"{reader.locate(ref).file.uri}): see the ledger {ledger.uri} and index the source again"
    )


def _replacements(ref: SampleRef, reader: ShardReader) -> Iterator[SampleRef]:
    """What may take a sample's slot: rows of its shard that may be used, shuffled by its uid."""
    others = np.setdiff1d(reader.good_rows(ref.source, ref.shard), [ref.row])
    shuffled = numpy_generator("replacement", reader.uid(ref)).permutation(others)
    for row in shuffled[:REPLACEMENT_TRIES]:
        yield SampleRef(source=ref.source, shard=ref.shard, row=int(row), pass_index=ref.pass_index)
