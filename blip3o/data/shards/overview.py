"""A set of shards in numbers, from its index only: sizes, shapes, caption lengths, and pictures that look alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blip3o.data.shards.manifest import Manifest, read_shard_facts
from blip3o.errors import DataError
from blip3o.types import SampleRef

ALIKE_BITS = 3  # of 64, that hashes of pictures that look alike may differ in
_BANDS = 4  # one more than bits may differ: hashes that near agree in one band at least
SIDES = (0, 64, 128, 256, 384, 512, 768, 1024, 2048)
ASPECTS = (0, 0.33, 0.5, 0.67, 0.95, 1.05, 1.5, 2, 3)
CAPTIONS = (0, 16, 32, 64, 128, 256, 512, 1024, 4096)


@dataclass(frozen=True, kw_only=True)
class GoodSamples:
    """All good samples of a manifest in order, as arrays [N]: where they are, pixels, characters, `phash` int64."""

    shard: np.ndarray
    row: np.ndarray
    width: np.ndarray
    height: np.ndarray
    caption_chars: np.ndarray
    phash: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def ref(self, index: int) -> SampleRef:
        """One of them, as readers name it."""
        return SampleRef(source=0, shard=int(self.shard[index]), row=int(self.row[index]), pass_index=0)


def good_samples(manifest: Manifest) -> GoodSamples:
    """Reads the index files of a manifest. Raises `DataError` if there is no good sample, or as `read_shard_facts`."""
    if not manifest.good_rows:
        raise DataError(f"{manifest.uri} has no good sample: see its ledger")
    names = ("width", "height", "caption_chars", "phash")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("shard", "row", *names)}
    for shard in manifest.shards:
        table = read_shard_facts(manifest, shard.shard)
        good = np.setdiff1d(np.arange(shard.rows), shard.bad_rows)
        parts["shard"].append(np.full(len(good), shard.shard))
        parts["row"].append(good)
        for name in names:
            parts[name].append(table.column(name).to_numpy()[good])
    return GoodSamples(**{name: np.concatenate(arrays) for name, arrays in parts.items()})


@dataclass(frozen=True, kw_only=True)
class Bin:
    """One bar of a histogram: `low` ≤ value < `high` (None: no end), and how many values lie there."""

    low: float
    high: float | None
    count: int

    @property
    def label(self) -> str:
        """The range in words."""
        return f"{self.low:g} or more" if self.high is None else f"{self.low:g} to {self.high:g}"


def histogram(values: np.ndarray, edges: Sequence[float]) -> list[Bin]:
    """Values by ranges that begin at `edges`; the last has no end. No value may lie below the first edge."""
    counts = np.bincount(np.searchsorted(edges, values, side="right") - 1, minlength=len(edges))
    ends = [*edges[1:], None]
    return [Bin(low=low, high=high, count=int(n)) for low, high, n in zip(edges, ends, counts, strict=True)]


def look_alikes(hashes: np.ndarray) -> list[list[int]]:
    """Groups of at least two indices whose perceptual hashes (int64 [N]) are linked by steps of `ALIKE_BITS` or less.

    Largest groups first. Only hashes that agree in a quarter are compared, which misses none that near.
    """
    unique, inverse = np.unique(hashes.astype(np.int64).view(np.uint64), return_inverse=True)
    leader = list(range(len(unique)))

    def find(item: int) -> int:
        while leader[item] != item:
            leader[item] = leader[leader[item]]
            item = leader[item]
        return item

    width = 64 // _BANDS
    for band in range(_BANDS):
        part = (unique >> np.uint64(band * width)) & np.uint64(2**width - 1)
        order = np.argsort(part, kind="stable")
        for same in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            for place, one in enumerate(same[:-1].tolist()):
                others = same[place + 1 :]
                near = np.bitwise_count(unique[others] ^ unique[one]) <= ALIKE_BITS
                for other in others[near].tolist():
                    leader[find(other)] = find(one)
    roots = np.array([find(item) for item in range(len(unique))], np.int64)[inverse]
    order = np.argsort(roots, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(roots[order])) + 1) if len(order) else []
    return sorted((group.tolist() for group in groups if len(group) > 1), key=lambda group: (-len(group), group[0]))
