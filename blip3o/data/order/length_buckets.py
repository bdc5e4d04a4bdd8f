"""Length bucketing that keeps the order pure: captions of similar length share a micro-batch, to save padding.

Micro-batches are taken in spans, as many as a window of the shuffle holds. A span has the samples that the plain order
gives it, no more and no fewer; they are sorted by the length of their captions, split into micro-batches, and these are
permuted. So every sample still comes once per pass, an optimizer step still sees short and long captions, and
the place of a sample depends only on the recipe and its number.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from blip3o.data.order.sample_order import SampleOrder, SourceRows
from blip3o.data.shards.manifest import Manifest, read_shard_facts
from blip3o.rng import numpy_generator
from blip3o.types import SampleRef

THREADS = 8
HELD_SHARDS = 512

# Samples → the length of each one's caption, int64 [N].
Lengths = Callable[[Sequence[SampleRef]], np.ndarray]


class CaptionLengths:
    """Characters of captions, from the index files of the shards that are asked for."""

    def __init__(self, manifests: Sequence[Manifest]) -> None:
        self._manifests = tuple(manifests)
        # Another version of a shard may hold other captions.
        self.version = repr([shard.version for manifest in manifests for shard in manifest.shards])
        self._shard = functools.lru_cache(maxsize=HELD_SHARDS)(self._read)

    def _read(self, source: int, shard: int) -> np.ndarray:
        return read_shard_facts(self._manifests[source], shard).column("caption_chars").to_numpy()

    def __call__(self, refs: Sequence[SampleRef]) -> np.ndarray:
        """Lengths in the order of `refs`. Raises `DataError` if an index file is missing or of another shard."""
        shards = list({(ref.source, ref.shard) for ref in refs})
        with ThreadPoolExecutor(THREADS) as pool:
            found = dict(zip(shards, pool.map(lambda place: self._shard(*place), shards), strict=True))
        return np.array([found[ref.source, ref.shard][ref.row] for ref in refs], np.int64)


class BucketedOrder(SampleOrder):
    """A `SampleOrder` whose micro-batches hold captions of similar length; see the top of this file."""

    def __init__(
        self,
        sources: Sequence[SourceRows],
        *,
        lengths: Lengths,
        version: str,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """`version` is another one where the lengths are; `options` as `SampleOrder` takes them."""
        super().__init__(sources, **options)
        self._lengths, self._version = lengths, version
        self.span = max(options["chunk"] * options["window"] // self.micro_batch, 1)
        # The stream's actors share the numbers of a span, and each asks for a few of them at a time.
        self._sorted = functools.lru_cache(maxsize=2)(self._sort)

    def micro_batch_refs(self, number: int) -> list[SampleRef]:
        """The samples of micro-batch `number` (from 0), B of them. Raises as the lengths do."""
        span, place = divmod(number, self.span)
        return self._sorted(span)[place]

    def _sort(self, span: int) -> list[list[SampleRef]]:
        size = self.span * self.micro_batch
        refs = self.refs(span * size, size)
        generator = numpy_generator(self.seed, "bucket", span)
        # Captions of one length are put in an order of their own, else those of a shard would stay together.
        by_length = np.lexsort((generator.random(size), self._lengths(refs)))
        batches = by_length.reshape(self.span, self.micro_batch)
        return [[refs[place] for place in batch] for batch in generator.permutation(batches).tolist()]

    def fingerprint(self) -> str:
        """sha256 over all that the order depends on."""
        return hashlib.sha256(f"bucket {self.span} {self._version} {super().fingerprint()}".encode()).hexdigest()
