"""A set of shards as a few lines and as one HTML page: `blip3o data inspect`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from blip3o.data.images.decode import open_image
from blip3o.data.shards import overview
from blip3o.data.shards.accounts import Account, account
from blip3o.data.shards.fetch import ShardReader
from blip3o.data.shards.ledger import LedgerEntry, by_kind
from blip3o.data.shards.manifest import Manifest, ShardSummary
from blip3o.data.shards.overview import Bin, GoodSamples
from blip3o.errors import DataError
from blip3o.evaluate.reports import html as markup
from blip3o.rng import numpy_generator
from blip3o.types import RawSample

THUMB = 144  # pixels, the longer side
GROUPS, MEMBERS = 12, 6  # of look-alikes, the most that are shown
CAPTION_CHARS = 160  # of a caption that are shown
SHOWN = 4  # kinds of damage that an error names


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """What a report shows: the manifest, its good samples, its damage, the account of all inputs (None if an older
    version indexed the shards), and groups of indices that look alike.
    """

    uri: str
    manifest: Manifest
    good: GoodSamples
    damage: list[LedgerEntry]
    account: Account | None
    alike: list[list[int]]

    @classmethod
    def from_summaries(cls, uri: str, manifest: Manifest, summaries: Sequence[ShardSummary]) -> "ShardSet":
        """The set at `uri`, from its index. Raises `DataError` if it has no good sample."""
        damage = [entry for summary in summaries for entry in summary.damage]
        if not manifest.good_rows:
            raise DataError(_no_good_sample(uri, damage))
        good = overview.good_samples(manifest)
        return cls(
            uri=uri,
            manifest=manifest,
            good=good,
            damage=damage,
            account=account(summaries),
            alike=overview.look_alikes(good.phash),
        )

    def lines(self, ledger: str) -> list[str]:
        """The set in a few lines; `ledger` is where its damage is listed."""
        copies = sum(len(group) - 1 for group in self.alike)
        size = sum(shard.size for shard in self.manifest.shards)
        return [
            f"{len(self.manifest.shards)} shards, {size / 2**20:.1f} MiB, {self.manifest.rows} samples, "
            f"{self.manifest.rows - len(self.good)} damaged",
            f"sides {_percentiles(self.good.width)} x {_percentiles(self.good.height)} pixels, "
            f"captions {_percentiles(self.good.caption_chars)} characters (5 %, median, 95 %)",
            f"{copies} look like another one, in {len(self.alike)} groups",
            *(f"damage: {kind}" for kind in by_kind(self.damage)),
            *([self.account.line(ledger)] if self.account else []),
        ]


def _no_good_sample(uri: str, damage: Sequence[LedgerEntry]) -> str:
    if not damage:
        return f"{uri} has no good sample: its shards hold no member and no row"
    return f"{uri} has no good sample: {'; '.join(map(str, by_kind(damage)[:SHOWN]))}"


def _percentiles(values: np.ndarray) -> str:
    low, middle, high = np.percentile(values, [5, 50, 95])
    return f"{low:.0f}, {middle:.0f}, {high:.0f}"


def render_page(shards: ShardSet, lines: Sequence[str], *, pictures: int, seed: int) -> str:
    """The page: `pictures` samples that `seed` chooses, look-alikes, histograms, damage. It loads nothing from
    elsewhere. Raises as reading the samples does.
    """
    good, reader = shards.good, ShardReader([shards.manifest])
    chosen = numpy_generator(seed, "inspect").permutation(len(good))[:pictures].tolist()
    groups = [_cards(reader, good, group[:MEMBERS]) for group in shards.alike[:GROUPS]]
    note = f"Groups whose perceptual hashes differ in {overview.ALIKE_BITS} of 64 bits at most; the largest first."
    damage = [[markup.text(kind.kind), str(kind.entries)] for kind in by_kind(shards.damage)]
    sections = [
        markup.section("Samples", f"Drawn with seed {seed}.", _cards(reader, good, chosen)),
        markup.section("Look-alikes", note, "<p></p>".join(groups)),
        *_histograms(good),
        markup.section(
            "Damage", "What indexing left out.", markup.table(["reason", "entries"], damage) if damage else ""
        ),
    ]
    return markup.page(shards.uri, " · ".join(lines), sections)


def _histograms(good: GoodSamples) -> list[str]:
    figures = (
        ("Shorter side, pixels", np.minimum(good.width, good.height), overview.SIDES),
        ("Width over height", good.width / good.height, overview.ASPECTS),
        ("Caption, characters", good.caption_chars, overview.CAPTIONS),
    )
    return [markup.section(title, "", _bars(overview.histogram(values, edges))) for title, values, edges in figures]


def _bars(bins: Sequence[Bin]) -> str:
    total = max(sum(part.count for part in bins), 1)
    rows = [
        [
            markup.text(part.label),
            str(part.count),
            markup.percent(part.count / total),
            markup.bar(part.count / total, None),
        ]
        for part in bins
    ]
    return markup.table(["range", "samples", "share", ""], rows)


def _cards(reader: ShardReader, good: GoodSamples, indices: Sequence[int]) -> str:
    samples = reader.fetch([good.ref(index) for index in indices])
    return f'<div class="cards">{"".join(map(_card, samples))}</div>'


def _card(sample: RawSample) -> str:
    image = open_image(sample.image, at_least=THUMB)
    size = f"{len(sample.image)} bytes"
    image.thumbnail((THUMB, THUMB), Image.Resampling.BICUBIC)
    caption = sample.caption if len(sample.caption) <= CAPTION_CHARS else f"{sample.caption[:CAPTION_CHARS]}…"
    words = f'{markup.text(caption)}<br><span class="asked">{markup.text(sample.uid)} · {size}</span>'
    return f'<div class="card">{markup.picture(image, alt=sample.key)}<div>{words}</div></div>'
