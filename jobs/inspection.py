"""`blip3o data inspect`: a set of shards as a few lines and as one HTML page that loads nothing from anywhere."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from blip3o.data import overview, storage
from blip3o.data.decode import open_image
from blip3o.data.fetch import ShardReader
from blip3o.data.ledger import kind_of
from blip3o.data.manifest import (
    Manifest,
    manifest_file,
    read_manifest,
    read_shard_summaries,
    write_manifest,
    write_shard_index,
)
from blip3o.data.overview import Bin, GoodSamples
from blip3o.data.parquet import SUFFIX
from blip3o.data.patterns import find_shards
from blip3o.data.scan import scan_shard
from blip3o.errors import DataError
from blip3o.evaluate import markup
from blip3o.rng import numpy_generator
from blip3o.types import RawSample

THUMB = 144  # pixels, the longer side
GROUPS, MEMBERS = 12, 6  # of look-alikes, as many as are shown
SAID = 160  # characters of a caption that are shown


@dataclass(frozen=True, kw_only=True)
class _Set:
    """What is told: the manifest, its good samples, damage by kind, and groups of indices that look alike."""

    uri: str
    manifest: Manifest
    good: GoodSamples
    damage: Counter[str]
    alike: list[list[int]]

    def lines(self) -> list[str]:
        copies = sum(len(group) - 1 for group in self.alike)
        size = sum(shard.size for shard in self.manifest.shards)
        return [
            f"{len(self.manifest.shards)} shards, {size / 2**20:.1f} MiB, {self.manifest.rows} samples, "
            f"{self.manifest.rows - len(self.good)} damaged",
            f"sides {_middle(self.good.width)} x {_middle(self.good.height)} pixels, "
            f"captions {_middle(self.good.caption_chars)} characters (5 %, median, 95 %)",
            f"{copies} look like another one, in {len(self.alike)} groups",
            *(f"damage: {count} x {kind}" for kind, count in self.damage.most_common()),
        ]


def inspect(uri: str, *, out: str | None, pictures: int, seed: int) -> str:
    """Looks at the manifest in the folder `uri`, or at shards (a file, or many by a `*`), which are scanned here.

    Returns a summary of a few lines; writes the page to the URI `out`. Raises `DataError` without a manifest or a good
    sample.
    """
    with tempfile.TemporaryDirectory() as folder:
        manifest = _scanned(uri, folder) if _names_shards(uri) else _indexed(uri)
        good = overview.good_samples(manifest)
        damage = Counter(
            kind_of(entry.reason)
            for shard, summary in read_shard_summaries(manifest.uri).items()
            if shard < len(manifest.shards)
            for entry in summary.damage
        )
        found = _Set(uri=uri, manifest=manifest, good=good, damage=damage, alike=overview.look_alikes(good.phash))
        lines = found.lines()
        if out is not None:
            storage.write_bytes(out, _page(found, lines, pictures, seed).encode())
            lines.append(f"wrote {out}")
    return "\n".join(lines)


def _names_shards(uri: str) -> bool:
    return "*" in uri or uri.endswith((".tar", SUFFIX))


def _indexed(uri: str) -> Manifest:
    if not storage.exists(manifest_file(uri)):
        raise DataError(f"{uri} holds no manifest: name the folder of one, or shards, as {uri}/*.tar")
    return read_manifest(uri)


def _scanned(uri: str, folder: str) -> Manifest:
    """A manifest in a folder of this machine, of shards that need not be indexed."""
    files = find_shards(uri)
    rows = [
        write_shard_index(folder, file, scan_shard(file, source="shards", shard=number)).row
        for number, file in enumerate(track(files, "scan", console=Console(stderr=True)))
    ]
    return write_manifest(folder, "shards", rows)


def _middle(values: np.ndarray) -> str:
    low, middle, high = np.percentile(values, [5, 50, 95])
    return f"{low:.0f}, {middle:.0f}, {high:.0f}"


def _page(found: _Set, lines: Sequence[str], pictures: int, seed: int) -> str:
    good, reader = found.good, ShardReader([found.manifest])
    drawn = numpy_generator(seed, "inspect").permutation(len(good))[:pictures].tolist()
    histograms = (
        ("Shorter side, pixels", np.minimum(good.width, good.height), overview.SIDES),
        ("Width over height", good.width / good.height, overview.ASPECTS),
        ("Caption, characters", good.caption_chars, overview.CAPTIONS),
    )
    groups = [_cards(reader, good, group[:MEMBERS]) for group in found.alike[:GROUPS]]
    note = f"Groups whose perceptual hashes differ in {overview.ALIKE_BITS} of 64 bits at most; the largest first."
    damage = [[markup.text(kind), str(count)] for kind, count in found.damage.most_common()]
    return markup.page(
        found.uri,
        " · ".join(lines),
        [
            *(
                markup.section(title, "", _bars(overview.histogram(values, edges)))
                for title, values, edges in histograms
            ),
            markup.section("Samples", f"Drawn with seed {seed}.", _cards(reader, good, drawn)),
            markup.section("Look-alikes", note, "<p></p>".join(groups)),
            markup.section(
                "Damage", "What indexing left out.", markup.table(["reason", "entries"], damage) if damage else ""
            ),
        ],
    )


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
    said = sample.caption if len(sample.caption) <= SAID else f"{sample.caption[:SAID]}…"
    words = f'{markup.text(said)}<br><span class="asked">{markup.text(sample.uid)} · {size}</span>'
    return f'<div class="card">{markup.picture(image, alt=sample.key)}<div>{words}</div></div>'
