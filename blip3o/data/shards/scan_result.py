"""What a scan of one shard gathers, whatever its format, and what became of every input.

An input is a member of a tar (regular file, link or device; no folder), a stretch of damage to it, or a row of Parquet.
Each is used by a good sample, covered by one entry of the ledger, or skipped as a system file.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from blip3o.config.shards import ColumnsConfig, KeyRule, LimitsConfig, MembersConfig
from blip3o.data.images.decode import open_image
from blip3o.data.shards.facts import SampleFacts, checksum, perceptual_hash, scalar_fields
from blip3o.data.shards.ledger import LedgerEntry, kind_of
from blip3o.data.shards.parquet.columns import Columns
from blip3o.data.shards.sample import Stored, decode_words
from blip3o.types import Member

STAGE = "index"
# Entries of one kind that a shard lists; one more entry counts the rest.
LISTED = 1000
Unit = Literal["members", "rows"]


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """What is refused besides damage, the names of Parquet columns, and what makes a key and a sample in tars."""

    limits: LimitsConfig = LimitsConfig()
    columns: ColumnsConfig = ColumnsConfig()
    key: KeyRule = "first_dot"
    members: MembersConfig = MembersConfig()

    def text(self) -> str:
        """All of it as one line, which an index file keeps: a scan with other options gives another index."""
        parts = [self.limits.model_dump_json(), self.columns.model_dump_json()]
        # Left out where they are the defaults, as in every index that was made before they existed.
        parts += [f"key: {self.key}"] if self.key != "first_dot" else []
        parts += [self.members.model_dump_json()] if self.members != MembersConfig() else []
        return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class InputCounts:
    """What became of a shard's `inputs`: `used` by good samples, `skipped` as system files, the rest in the ledger.

    The budget for damage is a share of pictures: of `samples`, good and bad, and of `further` pictures of their keys.
    Of `captions`, `spare_captions` come in addition to the one that a good sample uses.
    """

    unit: Unit
    inputs: int
    used: int
    skipped: int
    samples: int
    further: int
    captions: int
    spare_captions: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LostInputs:
    """Inputs of no bad sample that cannot be used, `count` of them in a byte range, and the reason."""

    offset: int
    size: int
    reason: str
    count: int = 1


@dataclass(kw_only=True)
class ScanResult:
    """What a scan gathers: keys and members by row, facts of good rows, reasons of bad ones, and `lost` inputs.

    `inputs` and `used` are counted separately, so that they can be compared; `weights` are the inputs that a
    row is made of, 1 where a row has none.
    """

    unit: Unit
    keys: list[str] = field(default_factory=list)
    members: list[tuple[Member, ...]] = field(default_factory=list)
    facts: dict[int, SampleFacts] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    lost: list[LostInputs] = field(default_factory=list)
    weights: dict[int, int] = field(default_factory=dict)
    columns: Columns | None = None
    inputs: int = 0
    used: int = 0
    skipped: int = 0
    first_skipped: str = ""
    samples: int = 0
    further: int = 0
    captions: int = 0
    spare_captions: int = 0

    def tally(self) -> InputCounts:
        """Only the counts."""
        return InputCounts(
            unit=self.unit,
            inputs=self.inputs,
            used=self.used,
            skipped=self.skipped,
            samples=self.samples,
            further=self.further,
            captions=self.captions,
            spare_captions=self.spare_captions,
        )


def ledger_entries(uri: str, shard_uid: str, found: ScanResult) -> tuple[LedgerEntry, ...]:
    """An entry for each `lost` item and each bad row; per kind at most `LISTED`, and one for the rest."""
    return tuple(_bounded(shard_uid, _entries(uri, shard_uid, found)))


def _entries(uri: str, shard_uid: str, found: ScanResult) -> Iterator[LedgerEntry]:
    for lost in found.lost:
        yield LedgerEntry(
            uid=shard_uid,
            uri=uri,
            offset=lost.offset,
            size=lost.size,
            reason=lost.reason,
            stage=STAGE,
            count=lost.count,
        )
    for row, reason in sorted(found.reasons.items()):
        offset, size = span(found.members[row])
        count = found.weights.get(row, 1)
        uid = f"{shard_uid}/{row}"
        yield LedgerEntry(uid=uid, uri=uri, offset=offset, size=size, reason=reason, stage=STAGE, count=count)


def _bounded(shard_uid: str, entries: Iterable[LedgerEntry]) -> Iterator[LedgerEntry]:
    listed: dict[str, int] = {}
    rest: dict[str, tuple[int, LedgerEntry]] = {}
    for entry in entries:
        kind = kind_of(entry.reason)
        listed[kind] = listed.get(kind, 0) + 1
        if listed[kind] <= LISTED:
            yield entry
            continue
        number, before = rest.get(kind, (0, replace(entry, uid=shard_uid, count=0)))
        start = min(before.offset, entry.offset)
        end = max(before.offset + before.size, entry.offset + entry.size)
        count = before.count + entry.count
        rest[kind] = number + 1, replace(before, offset=start, size=end - start, count=count)
    for kind, (number, entry) in rest.items():
        yield replace(entry, reason=f"{kind}: {number} more like the {LISTED} that are listed")


def span(members: Sequence[Member]) -> tuple[int, int]:
    """The byte range (offset, size) from the first to the last byte of some members."""
    start = min(member.offset for member in members)
    return start, max(member.offset + member.size for member in members) - start


def sample_facts(stored: Stored, limits: LimitsConfig) -> SampleFacts:
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
