"""One shard → its samples and its damage. Every caption and record is read and every image decoded, once, here.

A damaged sample keeps its row (rows are ordinals in the shard, and name samples forever) and costs its neighbours
nothing. A shard is read as what its first bytes say, else its name: `….parquet` as Parquet, everything else as a tar.
"""

from dataclasses import dataclass

from blip3o.config.shards import MembersConfig
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.facts import SampleFacts
from blip3o.data.shards.foreign_files import PARQUET
from blip3o.data.shards.ledger import LedgerEntry
from blip3o.data.shards.parquet.columns import without_captions
from blip3o.data.shards.parquet.samples import SUFFIX, Columns, ParquetShard, RowGroup, Spanned
from blip3o.data.shards.sample import NO_CAPTION
from blip3o.data.shards.scan_result import (
    InputCounts,
    LostInputs,
    ScanOptions,
    ScanResult,
    ledger_entries,
    sample_facts,
)
from blip3o.data.shards.tar.index import BLOCK, Read, ShardFile
from blip3o.data.shards.tar.scan import scan_tar_shard
from blip3o.storage import FileInfo
from blip3o.types import Member


@dataclass(frozen=True, kw_only=True)
class IndexedSample:
    """A sample's key, its members and what is noted of it; its row is its place in the scan.

    In Parquet the one member is the row group that it lies in.
    """

    key: str
    members: tuple[Member, ...]
    facts: SampleFacts = SampleFacts()


@dataclass(frozen=True, kw_only=True)
class ShardScan:
    """What shard number `shard` of `source` holds: every sample in order, the rows that cannot be used, the ledger's
    entries for all that is lost, and the `tally` of inputs. `columns` is None for a tar, `members` says which of a
    tar's members are read, `options` is the text of those scanned with.
    """

    source: str
    shard: int
    samples: tuple[IndexedSample, ...]
    bad_rows: tuple[int, ...]
    damage: tuple[LedgerEntry, ...]
    tally: InputCounts
    columns: Columns | None
    members: MembersConfig
    options: str


def scan_shard(file: FileInfo, *, source: str, shard: int, options: ScanOptions | None = None) -> ShardScan:
    """Scans one shard by ranged reads, holding at most two chunks of it, or one row group.

    Raises `StorageError` if it cannot be read; damage is part of the result.
    """
    options = options or ScanOptions()
    read = ShardFile(file.uri, file.size).read
    scan = _scan_parquet if _is_parquet(file.uri, read) else scan_tar_shard
    found = scan(read, file.size, options)
    return ShardScan(
        source=source,
        shard=shard,
        samples=tuple(
            IndexedSample(key=key, members=members, facts=found.facts.get(row, SampleFacts()))
            for row, (key, members) in enumerate(zip(found.keys, found.members, strict=True))
        ),
        bad_rows=tuple(sorted(found.reasons)),
        damage=ledger_entries(file.uri, f"{source}/{shard}", found),
        tally=found.tally(),
        columns=found.columns,
        members=options.members,
        options=options.text(),
    )


def _is_parquet(uri: str, read: Read) -> bool:
    head = read(0, BLOCK)
    return head.startswith(PARQUET) or (uri.lower().endswith(SUFFIX) and head[257:262] != b"ustar")


def _scan_parquet(read: Read, size: int, options: ScanOptions) -> ScanResult:
    found = ScanResult(unit="rows")
    try:
        shard = ParquetShard(read, size)
        found.inputs = found.samples = shard.rows
        if shard.rows:  # writers leave parts of none; they lose nothing, whatever their columns are
            found.columns = shard.columns(options.columns)
    except DamagedSampleError as damage:
        # Without a footer it is not known how many rows are lost: the file counts as one.
        found.inputs = found.samples = found.inputs or 1
        found.lost.append(LostInputs(offset=0, size=size, reason=damage.reason, count=found.inputs))
        return found
    for group in (group for group in shard.groups if group.rows):
        spanned = Spanned(read)
        found.keys += [str(row) for row in range(group.first, group.first + group.rows)]
        _scan_group(shard, group, spanned, options, found)
        found.members += [(spanned.member(),)] * group.rows
    found.used = len(found.facts)
    return found


def _scan_group(shard: ParquetShard, group: RowGroup, read: Read, options: ScanOptions, found: ScanResult) -> None:
    rows = range(group.first, group.first + group.rows)
    assert found.columns is not None
    try:
        samples = shard.read_group(read, group, found.columns)
    except DamagedSampleError as damage:
        found.reasons |= dict.fromkeys(rows, damage.reason)
        return
    for place, row in enumerate(rows):
        try:
            found.facts[row] = sample_facts(samples.stored(place), options.limits)
        except DamagedSampleError as damage:
            no_caption = damage.reason.startswith(NO_CAPTION)
            hint = without_captions(shard.schema, found.columns) if no_caption else ""
            found.reasons[row] = f"{NO_CAPTION}{hint}" if hint else damage.reason
