"""`blip3o data inspect`: a set of shards as a few lines and as one HTML page that loads nothing from anywhere."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track

from blip3o import storage
from blip3o.config.shards import ColumnsConfig, KeyRule, MembersConfig
from blip3o.data.images.decode import open_image
from blip3o.data.shards import overview
from blip3o.data.shards.accounts import Account, account, refusal, shards_among
from blip3o.data.shards.fetch import ShardReader
from blip3o.data.shards.ledger import LedgerEntry, by_kind
from blip3o.data.shards.manifest import (
    Manifest,
    ledger_file,
    manifest_file,
    read_manifest,
    read_shard_summaries,
    write_manifest,
    write_shard_index,
)
from blip3o.data.shards.overview import Bin, GoodSamples
from blip3o.data.shards.parquet.samples import SUFFIX
from blip3o.data.shards.scan import scan_shard
from blip3o.data.shards.scan_result import ScanOptions
from blip3o.errors import Blip3oError, ConfigError, DataError
from blip3o.evaluate.reports import html as markup
from blip3o.rng import numpy_generator
from blip3o.storage.patterns import find_shards
from blip3o.types import RawSample

THUMB = 144  # pixels, the longer side
GROUPS, MEMBERS = 12, 6  # of look-alikes, as many as are shown
SAID = 160  # characters of a caption that are shown
BUDGET = 0.01  # of damage, as `data.max_bad_share` has it by default
SHOWN = 4  # kinds of damage that an error names


@dataclass(frozen=True, kw_only=True)
class _Set:
    """What is told: the manifest, its good samples, its damage, the account of all inputs, and groups of indices that
    look alike.
    """

    uri: str
    manifest: Manifest
    good: GoodSamples
    damage: list[LedgerEntry]
    account: Account | None
    alike: list[list[int]]

    def lines(self, ledger: str) -> list[str]:
        copies = sum(len(group) - 1 for group in self.alike)
        size = sum(shard.size for shard in self.manifest.shards)
        return [
            f"{len(self.manifest.shards)} shards, {size / 2**20:.1f} MiB, {self.manifest.rows} samples, "
            f"{self.manifest.rows - len(self.good)} damaged",
            f"sides {_middle(self.good.width)} x {_middle(self.good.height)} pixels, "
            f"captions {_middle(self.good.caption_chars)} characters (5 %, median, 95 %)",
            f"{copies} look like another one, in {len(self.alike)} groups",
            *(f"damage: {kind}" for kind in by_kind(self.damage)),
            *([self.account.line(ledger)] if self.account else []),
        ]


def scan_options(key: KeyRule, image: str | None, caption: str | None) -> ScanOptions:
    """How shards are scanned to be looked at: `image` and `caption` name extensions in tars, and columns of Parquet.

    Raises `ConfigError` for what can be neither.
    """
    try:
        members = MembersConfig(image=image, caption=caption)
    except ValidationError as error:
        raise ConfigError(f"--image {image}, --caption {caption}: {error.errors()[0]['msg']}") from error
    return ScanOptions(key=key, members=members, columns=ColumnsConfig(image=image, caption=caption))


def inspect(uri: str, *, out: str | None, pictures: int, seed: int, options: ScanOptions | None = None) -> str:
    """Looks at the manifest in the folder `uri`, or at shards (a file, or many by a `*`), which are scanned here.

    Returns a summary of a few lines; writes the page to the URI `out`. Raises `DataError` without a manifest or a good
    sample, and says what is wrong with the others; `StorageError`, before anything is read, if `out` cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder, _page_file(out):
        shards = _names_shards(uri)
        manifest = _scanned(uri, folder, options or ScanOptions()) if shards else _indexed(uri)
        summaries = read_shard_summaries(manifest.uri)
        known = [summaries[shard.shard] for shard in manifest.shards if shard.shard in summaries]
        damage = [entry for summary in known for entry in summary.damage]
        if not manifest.good_rows:
            raise DataError(_no_good_sample(uri, damage))
        good = overview.good_samples(manifest)
        found = _Set(
            uri=uri,
            manifest=manifest,
            good=good,
            damage=damage,
            account=account(known),
            alike=overview.look_alikes(good.phash),
        )
        lines = found.lines("the lines of damage above" if shards else ledger_file(manifest.uri))
        if shards and found.account is not None:
            lost, fix = refusal(found.account, damage, options or ScanOptions(), BUDGET)
            lines += [f"indexing refuses these shards at a budget of {BUDGET:.0%}: {lost}; {fix}"] if lost else []
        if out is not None:
            storage.write_bytes(out, _page(found, lines, pictures, seed).encode())
            lines.append(f"wrote {out}")
    return "\n".join(lines)


def _no_good_sample(uri: str, damage: Sequence[LedgerEntry]) -> str:
    if not damage:
        return f"{uri} has no good sample: its shards hold no member and no row"
    return f"{uri} has no good sample: {'; '.join(map(str, by_kind(damage)[:SHOWN]))}"


@contextmanager
def _page_file(out: str | None) -> Iterator[None]:
    """Sees that a page can be written, before the work for it begins. What was there stays there if the work fails."""
    before = None
    if out is not None:
        before = storage.read_bytes(out) if storage.exists(out) else None
        storage.write_bytes(out, before or b"")
    try:
        yield
    except Blip3oError:
        if out is not None and before is None:
            storage.delete(out)
        raise


def _names_shards(uri: str) -> bool:
    """Whether a URI is one of shards: a pattern, a file that is there whatever its name, or the name of one."""
    return "*" in uri or uri.endswith((".tar", SUFFIX)) or storage.exists(uri)


def _indexed(uri: str) -> Manifest:
    if not storage.exists(manifest_file(uri)):
        if storage.exists(ledger_file(uri)):
            raise DataError(
                f"{uri} holds no manifest but the ledger of a refused source: see `blip3o data ledger {uri}`"
            )
        raise DataError(f"{uri} holds no manifest: name the folder of one, or shards, as {uri}/*.tar")
    return read_manifest(uri)


def _scanned(uri: str, folder: str, options: ScanOptions) -> Manifest:
    """A manifest in a folder of this machine, of shards that need not be indexed."""
    files = shards_among(find_shards(uri))
    rows = [
        write_shard_index(folder, file, scan_shard(file, source="shards", shard=number, options=options)).row
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
    damage = [[markup.text(kind.kind), str(kind.entries)] for kind in by_kind(found.damage)]
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
