"""One shard → its samples and its damage. Every caption and record is read and every image decoded, once, here.

A damaged sample keeps its row (rows are ordinals in the shard, and name samples for ever) and costs its neighbours
nothing. `….parquet` is read as Parquet, everything else as a tar.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from blip3o.config.shards import ColumnsConfig, LimitsConfig
from blip3o.data.damage import DamagedSampleError
from blip3o.data.decode import open_image
from blip3o.data.facts import SampleFacts, checksum, perceptual_hash, scalar_fields
from blip3o.data.ledger import LedgerEntry
from blip3o.data.parquet import SUFFIX, Columns, ParquetShard, RowGroup, Spanned
from blip3o.data.sample import Stored, choose_members, decode_words
from blip3o.data.storage import FileInfo
from blip3o.data.tarindex import Read, ShardFile, TarItem, TarSample, group_samples, scan_tar
from blip3o.types import Member

STAGE = "index"
DUPLICATE = "duplicate key"


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """What is refused beyond damage, and how Parquet columns are called."""

    limits: LimitsConfig = LimitsConfig()
    columns: ColumnsConfig = ColumnsConfig()

    def text(self) -> str:
        """All of it as one line, which an index file keeps: a scan with other options gives another index."""
        return f"{self.limits.model_dump_json()} {self.columns.model_dump_json()}"


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
    """What shard number `shard` of `source` holds: every sample in order, the rows that cannot be used, and the
    ledger's entries for them. `columns` is None for a tar, `options` the text of those scanned with.
    """

    source: str
    shard: int
    samples: tuple[IndexedSample, ...]
    bad_rows: tuple[int, ...]
    damage: tuple[LedgerEntry, ...]
    columns: Columns | None
    options: str


@dataclass
class _Found:
    """What a scan gathers: keys and members by row, facts of good rows, reasons of bad ones, and damage of no row."""

    keys: list[str] = field(default_factory=list)
    members: list[tuple[Member, ...]] = field(default_factory=list)
    facts: dict[int, SampleFacts] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    tears: list[TarItem] = field(default_factory=list)
    columns: Columns | None = None


def scan_shard(file: FileInfo, *, source: str, shard: int, options: ScanOptions | None = None) -> ShardScan:
    """Scans one shard by ranged reads, holding at most two chunks of it, or one row group.

    Raises `StorageError` if it cannot be read; damage is part of the result.
    """
    options = options or ScanOptions()
    read = ShardFile(file.uri, file.size).read
    scan = _scan_parquet if file.uri.endswith(SUFFIX) else _scan_tar
    found = scan(read, file.size, options)
    return ShardScan(
        source=source,
        shard=shard,
        samples=tuple(
            IndexedSample(key=key, members=members, facts=found.facts.get(row, SampleFacts()))
            for row, (key, members) in enumerate(zip(found.keys, found.members, strict=True))
        ),
        bad_rows=tuple(sorted(found.reasons)),
        damage=tuple(_entries(file.uri, f"{source}/{shard}", found)),
        columns=found.columns,
        options=options.text(),
    )


def _entries(uri: str, shard_uid: str, found: _Found) -> Iterator[LedgerEntry]:
    for tear in found.tears:
        yield LedgerEntry(uid=shard_uid, uri=uri, offset=tear.offset, size=tear.size, reason=tear.damage, stage=STAGE)
    for row, reason in sorted(found.reasons.items()):
        offset, size = span(found.members[row])
        yield LedgerEntry(uid=f"{shard_uid}/{row}", uri=uri, offset=offset, size=size, reason=reason, stage=STAGE)


def span(members: Sequence[Member]) -> tuple[int, int]:
    """The byte range (offset, size) from the first to the last byte of some members."""
    start = min(member.offset for member in members)
    return start, max(member.offset + member.size for member in members) - start


def _scan_tar(read: Read, size: int, options: ScanOptions) -> _Found:
    found = _Found()
    samples: list[TarSample] = []
    for item in group_samples(scan_tar(read, size)):
        if isinstance(item, TarItem):
            found.tears.append(item)
            continue
        try:
            if item.damage:
                raise DamagedSampleError(item.damage)
            found.facts[len(samples)] = _facts(_tar_bytes(item, read), options.limits)
        except DamagedSampleError as damage:
            found.reasons[len(samples)] = damage.reason
        samples.append(item)
    found.keys = [sample.key for sample in samples]
    found.members = [tuple(sample.members) for sample in samples]
    for row, reason in [*_repeated(samples), *_incomplete(samples, found.reasons)]:
        found.reasons[row] = reason
        found.facts.pop(row, None)
    return found


def _tar_bytes(sample: TarSample, read: Read) -> Stored:
    chosen = choose_members(sample.members)
    image, caption, record = (
        None if member is None else read(member.offset, member.size)
        for member in (chosen.image, chosen.caption, chosen.record)
    )
    return Stored(image=image or b"", caption=caption, record=record)


def _facts(stored: Stored, limits: LimitsConfig) -> SampleFacts:
    """Checks the contents of a sample. Raises `DamagedSampleError` where they cannot be used."""
    words = decode_words(stored, max_caption_chars=limits.max_caption_chars)
    image = open_image(stored.image, max_pixels=limits.max_pixels)
    return SampleFacts(
        width=image.width,
        height=image.height,
        caption_chars=len(words.caption),
        phash=perceptual_hash(image),
        crc32=checksum(*stored.parts()),
        fields=scalar_fields(words.record),
    )


def _repeated(samples: Sequence[TarSample]) -> Iterator[tuple[int, str]]:
    """Rows whose key came before. A second whole sample costs itself; members that lie apart cost both parts."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, sample in enumerate(samples):
        rows[sample.key].append(row)
    for key, (first, *others) in rows.items():
        seen = {member.ext for member in samples[first].members}
        for row in others:
            if seen & {member.ext for member in samples[row].members}:
                yield row, DUPLICATE
            else:
                reason = f"members of key '{key}' lie apart in the tar: write them one after another"
                yield from ((first, reason), (row, reason))


def _incomplete(samples: Sequence[TarSample], reasons: dict[int, str]) -> list[tuple[int, str]]:
    """Samples beside damage of the archive that lack a member which most of the shard's samples have."""
    usual = Counter(frozenset(m.ext for m in s.members) for row, s in enumerate(samples) if row not in reasons)
    if not usual:
        return []
    expected = usual.most_common(1)[0][0]
    return [
        (row, sample.torn_by)
        for row, sample in enumerate(samples)
        if sample.torn_by and row not in reasons and not expected <= {member.ext for member in sample.members}
    ]


def _scan_parquet(read: Read, size: int, options: ScanOptions) -> _Found:
    found = _Found()
    try:
        shard = ParquetShard(read, size)
        found.columns = shard.columns(options.columns)
    except DamagedSampleError as damage:
        found.tears.append(TarItem(name="", offset=0, size=size, damage=damage.reason))
        return found
    for group in shard.groups:
        spanned = Spanned(read)
        found.keys += [str(row) for row in range(group.first, group.first + group.rows)]
        _scan_group(shard, group, spanned, options, found)
        found.members += [(spanned.member(),)] * group.rows
    return found


def _scan_group(shard: ParquetShard, group: RowGroup, read: Read, options: ScanOptions, found: _Found) -> None:
    rows = range(group.first, group.first + group.rows)
    assert found.columns is not None
    try:
        samples = shard.read_group(read, group, found.columns)
    except DamagedSampleError as damage:
        found.reasons |= dict.fromkeys(rows, damage.reason)
        return
    for place, row in enumerate(rows):
        try:
            found.facts[row] = _facts(samples.stored(place), options.limits)
        except DamagedSampleError as damage:
            found.reasons[row] = damage.reason
