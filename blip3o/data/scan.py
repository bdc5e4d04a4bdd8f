"""One shard → its samples and its damage. Every caption and record is read and every image decoded, once, here.

A damaged sample keeps its row (rows are ordinals in the tar, and name samples for ever) and costs its neighbours
nothing.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blip3o.data.decode import open_image
from blip3o.data.facts import SampleFacts, checksum, perceptual_hash, scalar_fields
from blip3o.data.ledger import LedgerEntry
from blip3o.data.sample import DamagedSampleError, choose_members, decode_caption, decode_record
from blip3o.data.storage import FileInfo
from blip3o.data.tarindex import Read, ShardFile, TarItem, TarSample, group_samples, scan_tar
from blip3o.types import Member

STAGE = "index"
DUPLICATE = "duplicate key"


@dataclass(frozen=True, kw_only=True)
class IndexedSample:
    """A sample's key, its members and what is noted of it; its row is its place in the scan."""

    key: str
    members: tuple[Member, ...]
    facts: SampleFacts = SampleFacts()


@dataclass(frozen=True, kw_only=True)
class ShardScan:
    """What shard number `shard` of `source` holds: every sample in order, the rows that cannot be used, and the
    ledger's entries for them.
    """

    source: str
    shard: int
    samples: tuple[IndexedSample, ...]
    bad_rows: tuple[int, ...]
    damage: tuple[LedgerEntry, ...]


def scan_shard(file: FileInfo, *, source: str, shard: int) -> ShardScan:
    """Scans one shard by ranged reads, holding at most two chunks of it.

    Raises `StorageError` if it cannot be read; damage is part of the result.
    """
    read = ShardFile(file.uri, file.size).read
    samples: list[TarSample] = []
    facts: dict[int, SampleFacts] = {}
    reasons: dict[int, str] = {}
    tears: list[TarItem] = []
    keys: set[str] = set()
    for found in group_samples(scan_tar(read, file.size)):
        if isinstance(found, TarItem):
            tears.append(found)
            continue
        try:
            _require_whole(found, keys)
            facts[len(samples)] = _facts(found, read)
        except DamagedSampleError as damage:
            reasons[len(samples)] = damage.reason
        keys.add(found.key)
        samples.append(found)
    reasons |= _incomplete(samples, reasons)
    return ShardScan(
        source=source,
        shard=shard,
        samples=tuple(
            IndexedSample(
                key=sample.key,
                members=tuple(sample.members),
                facts=SampleFacts() if row in reasons else facts[row],
            )
            for row, sample in enumerate(samples)
        ),
        bad_rows=tuple(sorted(reasons)),
        damage=tuple(_entries(file.uri, f"{source}/{shard}", tears, samples, reasons)),
    )


def _entries(
    uri: str, shard_uid: str, tears: list[TarItem], samples: list[TarSample], reasons: dict[int, str]
) -> Iterator[LedgerEntry]:
    for tear in tears:
        yield LedgerEntry(uid=shard_uid, uri=uri, offset=tear.offset, size=tear.size, reason=tear.damage, stage=STAGE)
    for row, reason in sorted(reasons.items()):
        offset, size = span(samples[row].members)
        yield LedgerEntry(uid=f"{shard_uid}/{row}", uri=uri, offset=offset, size=size, reason=reason, stage=STAGE)


def span(members: Sequence[Member]) -> tuple[int, int]:
    """The byte range (offset, size) from the first to the last byte of some members."""
    start = min(member.offset for member in members)
    return start, max(member.offset + member.size for member in members) - start


def _require_whole(sample: TarSample, keys: set[str]) -> None:
    if sample.damage or sample.key in keys:
        raise DamagedSampleError(sample.damage or DUPLICATE)


def _facts(sample: TarSample, read: Read) -> SampleFacts:
    """Reads and checks the contents of a sample. Raises `DamagedSampleError` where they cannot be used."""
    chosen = choose_members(sample.members)
    stored = [read(member.offset, member.size) for member in chosen.all()]
    caption = decode_caption(stored[1])
    image = open_image(stored[0])
    record = decode_record(stored[2]) if chosen.record is not None else {}
    return SampleFacts(
        width=image.width,
        height=image.height,
        caption_chars=len(caption),
        phash=perceptual_hash(image),
        crc32=checksum(*stored),
        fields=scalar_fields(record),
    )


def _incomplete(samples: list[TarSample], reasons: dict[int, str]) -> dict[int, str]:
    """Samples beside damage of the archive that lack a member which most of the shard's samples have."""
    usual = Counter(frozenset(m.ext for m in s.members) for row, s in enumerate(samples) if row not in reasons)
    if not usual:
        return {}
    expected = usual.most_common(1)[0][0]
    return {
        row: sample.torn_by
        for row, sample in enumerate(samples)
        if sample.torn_by and row not in reasons and not expected <= {member.ext for member in sample.members}
    }
