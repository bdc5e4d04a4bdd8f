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
    from blip3o.data.manifest import Manifest

# Slots of the longest interleaving cycle: weights are followed to 1/10000.
CYCLE = 10_000


class SourceRows:
    """The good rows of a source: per shard the number of rows, and the rows that are bad (sorted)."""

    def __init__(self, name: str, rows: Sequence[int], bad_rows: Sequence[Sequence[int]]) -> None:
        self.name = name
        self.rows = np.asarray(rows, np.int64)
        self.bad_rows = [np.asarray(bad, np.int64) for bad in bad_rows]
        # How many good rows lie before each bad one.
        self._good_before = [bad - np.arange(len(bad)) for bad in self.bad_rows]
        self.counts = self.rows - np.array([len(bad) for bad in self.bad_rows], np.int64)
        # Good rows before each shard; one more entry than shards.
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        if not len(self):
            raise DataError(f"source '{name}' has no good row: look at its ledger")

    @classmethod
    def from_manifest(cls, name: str, manifest: "Manifest") -> "SourceRows":
        """The rows of a manifest. Raises `DataError` if none is good."""
        return cls(name, [shard.rows for shard in manifest.shards], [shard.bad_rows for shard in manifest.shards])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def good_rows(self) -> list[np.ndarray]:
        """Per shard, the ordinals of its good rows, int64."""
        return [
            np.delete(np.arange(rows), bad) if len(bad) else np.arange(rows)
            for rows, bad in zip(self.rows, self.bad_rows, strict=True)
        ]

    def locate(self, index: int) -> tuple[int, int]:
        """(shard, row) of the good row number `index`, counted through all shards."""
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        rank = index - int(self.starts[shard])
        # Every bad row with at most `rank` good ones before it pushes the row back by one.
        return shard, rank + int(np.searchsorted(self._good_before[shard], rank, side="right"))


class _Pass:
    """One pass over a source: position → number of the good row. Chunk order is planned at once, windows when met."""

    def __init__(self, rows: SourceRows, *, seed: int, chunk: int, window: int, number: int) -> None:
        self._rows, self._seed, self._window, self._number = rows, seed, window, number
        starts, lengths = _chunks(rows.counts, rows.starts, chunk)
        permuted = numpy_generator(seed, "chunks", rows.name, number).permutation(len(starts))
        self._starts, self._lengths = starts[permuted], lengths[permuted]
        # The position at which each window begins.
        self._begins = np.concatenate([[0], np.cumsum(self._lengths)])[:-1:window]
        self._mixed = functools.lru_cache(maxsize=2)(self._mix)

    def good_row(self, position: int) -> int:
        window = int(np.searchsorted(self._begins, position, side="right")) - 1
        return int(self._mixed(window)[position - int(self._begins[window])])

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

    def locate(self, slot: int) -> tuple[int, int]:
        """(source, n): the slot takes the n-th sample of the source, counted over all passes."""
        turn, place = divmod(slot, len(self.source))
        source = int(self.source[place])
        return source, turn * int(self.counts[source]) + int(self.rank[place])


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
    """The endless order of a set of sources; see the head of this file.

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
        self.sources, self.micro_batch = tuple(sources), micro_batch
        self._key = {"seed": seed, "chunk": chunk, "window": window}
        self._interleave = Interleave(weights, names)
        # Two passes of each source: a micro-batch may end one and begin the next.
        self._pass = functools.lru_cache(maxsize=2 * len(sources))(self._plan)

    def _plan(self, source: int, number: int) -> _Pass:
        return _Pass(self.sources[source], number=number, **self._key)

    def micro_batch_refs(self, number: int) -> list[SampleRef]:
        """The samples of micro-batch `number` (from 0), B of them, in order. Any number may be asked at any time."""
        first = number * self.micro_batch
        return [self.ref(slot) for slot in range(first, first + self.micro_batch)]

    def ref(self, slot: int) -> SampleRef:
        """The sample in one slot (from 0)."""
        source, nth = self._interleave.locate(slot)
        rows = self.sources[source]
        pass_index, position = divmod(nth, len(rows))
        shard, row = rows.locate(self._pass(source, pass_index).good_row(position))
        return SampleRef(source=source, shard=shard, row=row, pass_index=pass_index)

    def fingerprint(self) -> str:
        """sha256 over all that the order depends on. Two orders with one fingerprint are the same order."""
        digest = hashlib.sha256(repr(sorted(self._key.items()) + [("micro_batch", self.micro_batch)]).encode())
        for count, source in zip(self._interleave.counts, self.sources, strict=True):
            digest.update(repr((source.name, int(count), len(source.rows))).encode())
            digest.update(source.rows.astype("<i8").tobytes())
            for bad in source.bad_rows:
                digest.update(np.int64(len(bad)).astype("<i8").tobytes() + bad.astype("<i8").tobytes())
        return digest.hexdigest()
