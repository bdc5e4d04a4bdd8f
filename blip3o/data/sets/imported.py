"""A user's own small set into shards: a folder of images with texts next to them, or a table.

- folder: every picture below it; `NAME.txt` next to it is its caption, `NAME.json` its record; or a table `metadata`
- CSV, JSON, JSON Lines, Parquet: an image path (relative ones join the table's folder) and a caption a row; all else is
  the record. Known as they are: JourneyDB's lines (`img_path`, `prompt` or `Task1.Caption`), LLaVA's `conversations`,
  OpenAI's `messages`, COCO's captions

Every image and text is checked as indexing would. What is left out goes to `ledger.parquet` next to the shards, and
every input is accounted for.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from blip3o import storage
from blip3o.config.shards import LimitsConfig
from blip3o.data.sets import writer
from blip3o.data.sets.importing.columns import TableOptions
from blip3o.data.sets.importing.folders import is_folder, list_folder
from blip3o.data.sets.importing.items import Listing, is_file_entry, item_entry
from blip3o.data.sets.importing.samples import captions_of, every_caption, sample_of
from blip3o.data.sets.importing.splits import CaptionGroups, GroupBy, SharedCaptions, Split
from blip3o.data.sets.importing.tables import ENDINGS, list_table, table_kind
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.ledger import LedgerEntry, read_ledger, write_ledger
from blip3o.errors import DataError

KINDS_SHOWN = 8
_SHARDS_HINT = "; shards (.tar, .parquet with the pictures) need no import: python -m jobs.index reads them"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The set as written, where its ledger is, and what was left out: `damage` of items, `unused` of other files.

    `notes` say in lines what a user should know about its split.
    """

    summary: writer.SetSummary
    ledger: str
    listing: Listing
    damage: tuple[LedgerEntry, ...]
    unused: tuple[LedgerEntry, ...]
    converted: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def account(self) -> list[str]:
        """What became of all inputs, in lines: the numbers of each add up."""
        listing, samples = self.listing, sum(self.summary.counts.values())
        lines = [f"{samples} of {len(listing.items)} {listing.noun} became samples, {len(self.damage)} are left out"]
        if self.converted:
            lines.append(f"converted to PNG: {_counted(self.converted)}")
        if listing.files:
            lines.append(
                f"{listing.files} files: {listing.used} are or describe these pictures, "
                f"{listing.listed} belong to none and are listed, {_total('skipped', listing.skipped)}, "
                f"{_total('of other kinds', listing.ignored)}"
            )
        return [*lines, *self.notes]


def _total(what: str, kinds: Mapping[str, int]) -> str:
    return f"{sum(kinds.values())} {what}" + (f" ({_counted(kinds)})" if kinds else "")


def _counted(kinds: Mapping[str, int]) -> str:
    most = Counter(kinds).most_common()
    shown = [f"{count} x {storage.shown(kind)}" for kind, count in most[:KINDS_SHOWN]]
    return ", ".join([*shown, f"{len(most) - KINDS_SHOWN} other kinds"] if len(most) > KINDS_SHOWN else shown)


def import_set(
    uri: str,
    out: str,
    *,
    heldout: float = 0.0,
    group_by: GroupBy = "picture",
    samples_per_shard: int = 1000,
    limits: LimitsConfig | None = None,
    options: TableOptions | None = None,
    on_progress: writer.Progress | None = None,
) -> Imported:
    """Writes the samples at `uri` (a folder, or a table by its ending) as shards below `out`.

    A share `heldout` of them, chosen by hashes of their images' names, goes to shards of their own; with
    `group_by="caption"`, by hashes of their captions, so that equal captions are on one side. A set that is there
    already, of the same listing, is only reported; an interrupted one is started again. `options` say how a table is
    read if that cannot be detected. Raises `DataError` if the table cannot be read, nothing in it can be used, or
    `out` holds another set; `StorageError` as reads do.
    """
    options = options or TableOptions()
    listing = _listed(uri, out, options)
    limits = limits or LimitsConfig()
    settings: writer.Settings = {
        "set": "import",
        "from": storage.normalize(uri),
        "digest": listing.digest,
        "heldout": str(heldout),
        "limits": limits.model_dump_json(),
        "samples_per_shard": samples_per_shard,
        **({} if group_by == "picture" else {"group_by": group_by}),
        **{name: value for name, value in vars(options).items() if value},
    }
    ledger = storage.join(out, writer.LEDGER)
    converted: Counter[str] = Counter()
    shared = SharedCaptions()
    there = writer.completed(out, settings)
    if there is None:
        groups = CaptionGroups(_all_captions(listing, limits)) if group_by == "caption" else None
        checked = _checked(listing, ledger, converted, Split(heldout=heldout, groups=groups), limits, on_progress)
        checked = _counted_captions(checked, shared)
        total = len(listing.items)
        there = writer.write_set(out, checked, settings=settings, total=total, samples_per_shard=samples_per_shard)
    damage = _damage(ledger, listing)
    return Imported(
        summary=there,
        ledger=ledger,
        listing=listing,
        damage=damage,
        unused=listing.left_out,
        converted=converted,
        notes=tuple(_notes(there, shared, heldout, group_by)),
    )


def _all_captions(listing: Listing, limits: LimitsConfig) -> Iterator[list[str]]:
    found = (captions_of(item, limits) for item in listing.items)
    return (captions for captions in found if captions)


def _counted_captions(samples: Iterator[writer.Sample], shared: SharedCaptions) -> Iterator[writer.Sample]:
    """Passes samples on, and counts the captions on each side."""
    for sample in samples:
        shared.add(sample.record["split"], every_caption(sample.record))
        yield sample


def _notes(summary: writer.SetSummary, shared: SharedCaptions, heldout: float, group_by: GroupBy) -> Iterator[str]:
    if note := shared.note():
        yield note
    drawn = f"each {group_by} is held out with probability {heldout:g}"
    if heldout and "heldout" not in summary.counts:
        yield f"nothing is held out: {drawn}; give a larger --heldout"
    if "train" not in summary.counts:
        yield f"nothing is left to train on: {drawn}; give a smaller --heldout"


def _listed(uri: str, out: str, options: TableOptions) -> Listing:
    name = storage.shown(uri)
    if table_kind(uri) and not is_folder(uri):
        return list_table(uri, options)
    if storage.exists(uri):
        raise DataError(
            f"{name} is neither a folder nor a table that is read ({', '.join(ENDINGS)}, also with .gz){_SHARDS_HINT}"
        )
    listing = list_folder(uri, out)
    if not listing.items:
        found = _counted({**listing.ignored, **listing.skipped}) or "nothing"
        first = f"; {listing.left_out[0].uri}: {listing.left_out[0].reason}" if listing.left_out else ""
        shards = _SHARDS_HINT if {".tar", ".parquet"} & {*listing.ignored} else ""
        raise DataError(f"{name} names no image (jpg, png, webp, …): found {found}{first}: check the path{shards}")
    return listing


def _checked(
    listing: Listing,
    ledger: str,
    converted: Counter[str],
    split: Split,
    limits: LimitsConfig,
    on_progress: writer.Progress | None,
) -> Iterator[writer.Sample]:
    """The samples that can be used; at the end, before the set counts as whole, the ledger of the others.

    `converted` counts the formats of pictures that are not stored as they are.
    """
    damage: list[LedgerEntry] = []
    for number, item in enumerate(listing.items):
        try:
            sample = sample_of(number, item, split, limits)
            if "converted" in sample.record:
                converted[_conversion(**sample.record["converted"])] += 1
            yield sample
        except DamagedSampleError as found:
            damage.append(item_entry(number, item.image, found.reason))
        if on_progress:
            on_progress(number + 1, len(listing.items))
    write_ledger(ledger, [*damage, *listing.left_out])
    if len(damage) == len(listing.items):
        first = f"{damage[0].uri}: {damage[0].reason}"
        raise DataError(f"none of {len(damage)} samples can be used, the first: {first}: see {ledger}")


def _conversion(*, format: str, frames: int) -> str:
    return format if frames == 1 else f"{format} of several frames (the first)"


def _damage(ledger: str, listing: Listing) -> tuple[LedgerEntry, ...]:
    """The items that were left out. Rows of other files, which may come and go, are those of this listing."""
    entries = read_ledger(ledger)
    damage = [entry for entry in entries if not is_file_entry(entry)]
    if {entry for entry in entries if is_file_entry(entry)} != {*listing.left_out}:
        write_ledger(ledger, [*damage, *listing.left_out])
    return tuple(damage)
