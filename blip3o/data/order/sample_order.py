"""The order of samples: a pure function of (good rows, weights, seed, micro-batch size). No I/O, no state that matters.

Slot g of the endless sequence belongs to a source by a fixed cycle that follows the weights, and is that source's n-th
sample by counting. Within a source, pass n // size permutes chunks of neighbouring good rows over the whole set, then
mixes the samples inside each window of chunks: well shuffled, yet a window touches few shards. Micro-batch i is slots
iB … iB+B−1. Nothing here knows of workers or steps, so neither can change the order; caches only save time.
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from blip3o.errors import ConfigError, DataError
from blip3o.rng import numpy_generator
from blip3o.types import SampleRef

if TYPE_CHECKING:
    from blip3o.data.shards.manifest import Manifest

# Slots of the longest interleaving cycle: weights are followed to 1/10000.
CYCLE = 10_000


class SourceRows:
    """The good rows of a source: per shard the number of rows, and the rows that are bad or not selected (sorted).

    Of 30 million rows in 3,000 shards of which half are bad, it holds 180 MB; of only good ones, almost nothing.
    """

    def __init__(self, name: str, rows: Sequence[int], bad_rows: Sequence[Sequence[int] | np.ndarray]) -> None:
        self.name = name
        self.rows = np.asarray(rows, np.int64)
        lengths = np.array([len(bad) for bad in bad_rows], np.int64)
        # All bad rows in one array; those of a shard lie from its entry of `_bad_starts` to the next.
        self._bad = np.concatenate([np.asarray(bad, np.int32) for bad in bad_rows] or [np.empty(0, np.int32)])
        self._bad_starts = np.concatenate([[0], np.cumsum(lengths)])
        self.counts = self.rows - lengths
        # Good rows before each shard; one more entry than shards.
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        # How many good rows lie before each bad one, counted through all shards.
        before_shard = self.starts[:-1] + self._bad_starts[:-1]
        self._good_before = self._bad - np.arange(len(self._bad)) + np.repeat(before_shard, lengths)
        if not len(self):
            raise DataError(f"source '{name}' has no good row: look at its ledger")

    @classmethod
    def from_manifest(
        cls, name: str, manifest: "Manifest", left_out: Sequence[np.ndarray] | None = None
    ) -> "SourceRows":
        """The rows of a manifest, without those that a selection leaves out of each shard. Raises `DataError` if none
        is good.
        """
        bad: list[Sequence[int] | np.ndarray] = [shard.bad_rows for shard in manifest.shards]
        if left_out is not None:
            bad = [np.union1d(damaged, rest) for damaged, rest in zip(bad, left_out, strict=True)]
        return cls(name, [shard.rows for shard in manifest.shards], bad)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def bad_rows(self, shard: int) -> np.ndarray:
        """The ordinals of a shard's rows that are bad or not selected, int32, sorted."""
        return self._bad[self._bad_starts[shard] : self._bad_starts[shard + 1]]

    def good_rows(self, shard: int) -> np.ndarray:
        """The ordinals of a shard's good rows, int64, sorted."""
        return np.delete(np.arange(self.rows[shard]), self.bad_rows(shard))

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shards, rows) of the good rows number `indices` [N], counted through all shards; int64 [N] each."""
        shards = np.searchsorted(self.starts, indices, side="right") - 1
        # Every bad row of the shard with no more good ones before it pushes the row back by one.
        skipped = np.searchsorted(self._good_before, indices, side="right") - self._bad_starts[shards]
        return shards, indices - self.starts[shards] + skipped


class Pass:
    """One pass over a source: position → number of the good row. Chunk order is planned at once, windows when met."""

    def __init__(self, rows: SourceRows, *, seed: int, chunk: int, window: int, number: int) -> None:
        self._rows, self._seed, self._window, self._number = rows, seed, window, number
        starts, lengths = _chunks(rows.counts, rows.starts, chunk)
        permuted = numpy_generator(seed, "chunks", rows.name, number).permutation(len(starts))
        self._starts, self._lengths = starts[permuted], lengths[permuted]
        # The position at which each window begins.
        self._begins = np.concatenate([[0], np.cumsum(self._lengths)])[:-1:window]
        self._mixed = functools.lru_cache(maxsize=2)(self._mix)

    def good_rows(self, first: int, count: int) -> np.ndarray:
        """Numbers of the good rows at `count` positions from `first` on, int64 [count]; all must lie in the pass."""
        begin, end = np.searchsorted(self._begins, [first, first + count - 1], side="right").tolist()
        met = np.concatenate([self._mixed(window) for window in range(begin - 1, end)])
        return met[first - int(self._begins[begin - 1]) :][:count]

    def _mix(self, window: int) -> np.ndarray:
        part = slice(window * self._window, (window + 1) * self._window)
        pairs = zip(self._starts[part], self._lengths[part], strict=True)
        rows = np.concatenate([np.arange(start, start + length) for start, length in pairs])
        return numpy_generator(self._seed, "window", self._rows.name, self._number, window).permutation(rows)


def _chunks(counts: np.ndarray, starts: np.ndarray, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the chunks of consecutive good rows; a chunk does not cross from one shard to the next."""
    per_shard = -(-counts // chunk)
    shard = np.repeat(np.arange(len(counts)), per_shard)
    nth = np.arange(len(shard)) - np.repeat(np.cumsum(per_shard) - per_shard, per_shard)
    return starts[shard] + nth * chunk, np.minimum(chunk, counts[shard] - nth * chunk)


class Interleave:
    """Which source each slot belongs to: a cycle in which every source keeps within one slot of its share at all times.

    The sequence is R. Tijdeman's for the chairman assignment problem (Discrete Mathematics 32, 1980): of the sources
    that are far enough behind their share, the one that must come soonest is next.
    """

    def __init__(self, weights: Sequence[float], names: Sequence[str]) -> None:
        self.counts = _cycle_counts(weights, names)
        self._whole: list[int] = self.counts.tolist()
        self.source = np.empty(int(self.counts.sum()), np.int64)
        self.rank = np.empty_like(self.source)
        given = [0] * len(self.counts)
        for slot in range(len(self.source)):
            chosen = self._next(slot, given)
            self.source[slot], self.rank[slot] = chosen, given[chosen]
            given[chosen] += 1

    def _next(self, slot: int, given: list[int]) -> int:
        # All in units of 1 / (cycle · (2n − 2)) of a slot, so that only whole numbers are compared and divided.
        cycle, scale = len(self.source), max(2 * len(given) - 2, 1)
        behind = [(count * (slot + 1) - cycle * done) * scale for count, done in zip(self._whole, given, strict=True)]
        urgency = [((scale - 1) * cycle - late) / count for late, count in zip(behind, self._whole, strict=True)]
        return min((urgency[i], i) for i, late in enumerate(behind) if late >= cycle)[1]

    def locate(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(sources, n): slot i of `slots` [N] takes the n-th sample of its source, counted over all passes."""
        turns, places = np.divmod(slots, len(self.source))
        sources = self.source[places]
        return sources, turns * self.counts[sources] + self.rank[places]


def _cycle_counts(weights: Sequence[float], names: Sequence[str]) -> np.ndarray:
    """Slots of each source in the shortest cycle that follows the weights to 1/`CYCLE` (largest remainders)."""
    shares = np.asarray(weights, np.float64) / math.fsum(weights) * CYCLE
    counts = np.floor(shares).astype(np.int64)
    by_remainder = np.argsort(counts - shares, kind="stable")
    counts[by_remainder[: CYCLE - int(counts.sum())]] += 1
    for name, count, weight in zip(names, counts, weights, strict=True):
        if count == 0:
            raise ConfigError(
                f"weight {weight} of source '{name}' is under 1/{CYCLE} of all: raise it, or drop the source"
            )
    return counts // math.gcd(*counts.tolist())


class SampleOrder:
    """The endless order of a set of sources; see the top of this file.

    `chunk` is in good rows, `window` in chunks, `weights` are relative. Raises `ConfigError` for values that give no
    order.
    """

    def __init__(
        self,
        sources: Sequence[SourceRows],
        *,
        weights: Sequence[float],
        seed: int,
        micro_batch: int,
        chunk: int = 32,
        window: int = 64,
    ) -> None:
        if len(sources) != len(weights) or not sources:
            raise ConfigError(f"{len(sources)} sources and {len(weights)} weights: give one weight for each source")
        if not all(weight > 0 and math.isfinite(weight) for weight in weights):
            raise ConfigError(f"weights {list(weights)}: every weight must be above 0")
        if min(micro_batch, chunk, window) < 1:
            raise ConfigError(f"micro_batch {micro_batch}, chunk {chunk}, window {window}: none may be below 1")
        names = [source.name for source in sources]
        if len(set(names)) != len(names):
            raise ConfigError(f"source names repeat: {', '.join(names)}")
        self.sources, self.micro_batch, self.seed = tuple(sources), micro_batch, seed
        self._key = {"seed": seed, "chunk": chunk, "window": window}
        self._interleave = Interleave(weights, names)
        # Two passes of each source: a micro-batch may end one and begin the next.
        self._pass = functools.lru_cache(maxsize=2 * len(sources))(self._plan)

    def _plan(self, source: int, number: int) -> Pass:
        return Pass(self.sources[source], number=number, **self._key)

    @property
    def shares(self) -> list[float]:
        """Each source's share of the samples, as the interleaving follows it."""
        counts = self._interleave.counts
        return (counts / counts.sum()).tolist()

    def first_pass(self, source: int) -> Pass:
        """The first pass over source number `source`."""
        return self._pass(source, 0)

    def micro_batch_refs(self, number: int) -> list[SampleRef]:
        """The samples of micro-batch `number` (from 0), B of them, in order. Any number may be asked at any time."""
        return self.refs(number * self.micro_batch, self.micro_batch)

    def refs(self, first: int, count: int) -> list[SampleRef]:
        """The samples in `count` slots from `first` (from 0) on."""
        sources, numbers = self._interleave.locate(np.arange(first, first + count))
        places = np.empty((count, 3), np.int64)
        for source in np.unique(sources).tolist():
            slots = np.flatnonzero(sources == source)
            places[slots] = self._places(source, int(numbers[slots[0]]), len(slots))
        return [
            SampleRef(source=source, shard=shard, row=row, pass_index=number)
            for source, (shard, row, number) in zip(sources.tolist(), places.tolist(), strict=True)
        ]

    def _places(self, source: int, first: int, count: int) -> np.ndarray:
        """(shard, row, pass) of `count` samples of a source from its number `first` on, int64 [count, 3]."""
        rows = self.sources[source]
        parts = []
        while count:
            number, position = divmod(first, len(rows))
            met = min(count, len(rows) - position)
            shards, ordinals = rows.locate(self._pass(source, number).good_rows(position, met))
            parts.append(np.stack([shards, ordinals, np.full(met, number)], axis=1))
            first, count = first + met, count - met
        return np.concatenate(parts)

    def fingerprint(self) -> str:
        """sha256 over all that the order depends on. Two orders with one fingerprint are the same order."""
        digest = hashlib.sha256(repr(sorted(self._key.items()) + [("micro_batch", self.micro_batch)]).encode())
        for count, source in zip(self._interleave.counts, self.sources, strict=True):
            digest.update(repr((source.name, int(count), len(source.rows))).encode())
            digest.update(source.rows.astype("<i8").tobytes())
            for bad in map(source.bad_rows, range(len(source.rows))):
                digest.update(np.int64(len(bad)).astype("<i8").tobytes() + bad.astype("<i8").tobytes())
        return digest.hexdigest()
