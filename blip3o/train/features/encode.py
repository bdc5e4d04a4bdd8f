"""Encodes one shard into its file of features: read, decode, encode, write. `jobs.encode` distributes shards with Ray.

Three kinds of threads work on a shard at once: some read and decode images ahead of the encoder, two give batches to
the encoder, and the caller's packs features and writes the file. While a batch is packed, the next two are already with
the encoder. A second shard may be written at the same time, by another caller: its first images are decoded while the
first shard's last ones are encoded, so that the encoder does not wait between shards either.

The encoder only sees batches of one size: the last batch of a shard is padded. A record is therefore a function of the
shard, the encoder and the batch size, and any machine can compute it again.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.data.features.files import (
    FeatureFolder,
    FeatureFooter,
    read_footer,
    read_header,
    scan_records,
    write_features,
)
from blip3o.data.features.records import StoredError
from blip3o.data.images.decode import decode_image
from blip3o.data.inputs import StageInputs
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.fetch import ShardReader
from blip3o.data.shards.ledger import Ledger
from blip3o.data.shards.manifest import Manifest
from blip3o.device import select
from blip3o.errors import DataError
from blip3o.train.features.encoder import FeatureCache, FrozenEncoder
from blip3o.types import RawSample, SampleRef

STAGE = "encode"
PREFETCH = 3  # batches that are read and decoded while the encoder works; with more threads, one for each
ENCODING = 2  # batches with the encoder: one whose features are on their way back, one that is computed
# The allowed relative RMS difference between stored and re-encoded features, on top of the error of storing them:
# rounding depends on the device and the shape. In bf16 one rounding is 2e-3, and it passes through dozens of layers.
TOLERANCE_FP32, TOLERANCE_BF16 = 1e-4, 3e-2

Encode = Callable[[np.ndarray], np.ndarray]
Pixels = list[np.ndarray | None]  # of a batch; None for damaged images
Features = list[np.ndarray | None]
Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class ShardEncoder:
    """Encodes the shards of one source with `encode` (uint8 [B, S, S, 3] → float32 [B, N, F]).

    `threads` threads read and decode; `batch_size` is the size of every batch. `encode` is called by two threads at a
    time. Two threads may write shards; the second one's images go to the encoder after all of the first one's.
    """

    recipe: Recipe
    manifest: Manifest
    folder: FeatureFolder
    encode: Encode
    batch_size: int
    threads: int
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def write(self, shard: int) -> FeatureFooter:
        """Encodes a shard's good rows and writes its file.

        Damaged images are recorded in the ledger next to the files. Raises `StorageError` and `DataError` as reading,
        `FrozenEncoder` and `write_features` do.
        """
        header = self.folder.header(self.manifest.shards[shard])
        # Closed at once, also after an error, whose traceback would keep the next shard from its turn.
        with closing(self._features(shard, self._good_rows(shard))) as features:
            return write_features(self.folder.file(shard), header, self._by_row(header.rows, features))

    def verify(self, shard: int) -> FeatureFooter:
        """Reads a shard's complete file and encodes its first batch again.

        Raises `StorageError` if the header, a record or the footer is corrupt, and `DataError` if a good row has no
        features or if features do not match the images.
        """
        uri = self.folder.file(shard)
        header = read_header(uri)
        footer = read_footer(uri, header)
        first = self._good_rows(shard)[: self.batch_size]
        wanted = dict(self._features(shard, first))
        error, encoded = StoredError(), 0
        for row, record in scan_records(uri, header):
            stored = header.record.unpack(record)
            encoded += stored is not None
            computed = wanted.get(row)
            if (stored is None) != (computed is None) and row in wanted:
                raise DataError(f"{uri}: row {row} has features, or an image, where the other is missing: encode again")
            if stored is not None and computed is not None:
                error.add(computed, stored)
        if encoded != footer.encoded:
            raise DataError(f"{uri}: {encoded} rows have features, its footer says {footer.encoded}: encode again")
        allowed = footer.relative_error + (
            TOLERANCE_BF16 if self.recipe.parallel.precision == "bf16" else TOLERANCE_FP32
        )
        if error.relative > allowed:
            raise DataError(
                f"{uri}: features of rows {first[0]} to {first[-1]}, encoded again, differ by {error.relative:.2e}, "
                f"{allowed:.2e} is allowed: delete the file and encode again"
            )
        return footer

    def _good_rows(self, shard: int) -> list[int]:
        row = self.manifest.shards[shard]
        bad = set(row.bad_rows)
        return [number for number in range(row.rows) if number not in bad]

    def _by_row(self, rows: int, features: Iterator[tuple[int, np.ndarray | None]]) -> Iterator[np.ndarray | None]:
        """Features of every row in order, None for rows that `features` skips."""
        upcoming = next(features, None)
        for row in range(rows):
            if upcoming is not None and upcoming[0] == row:
                yield upcoming[1]
                upcoming = next(features, None)
            else:
                yield None

    def _features(self, shard: int, rows: Sequence[int]) -> Generator[tuple[int, np.ndarray | None]]:
        """(row, features [N, F]) of the given rows in order; None if the image is damaged."""
        reader = ShardReader([self.manifest], threads=self.threads)
        groups = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        with (
            ThreadPoolExecutor(self.threads, thread_name_prefix="decoder") as decoders,
            ThreadPoolExecutor(ENCODING, thread_name_prefix="encoder") as encoders,
        ):
            ahead = max(PREFETCH, self.threads)
            decoded = prefetch(decoders, lambda group: self._pixels(reader, shard, group), groups, ahead=ahead)
            with closing(self._in_turn(decoded)) as batches:
                encoded = prefetch(encoders, self._encoded, batches, ahead=ENCODING)
                for group, features in zip(groups, encoded, strict=True):
                    yield from zip(group, features, strict=True)

    def _in_turn(self, batches: Iterator[Pixels]) -> Generator[Pixels]:
        """The batches, once no other shard has any left to encode."""
        with self._turn:
            yield from batches

    def _encoded(self, pixels: Pixels) -> Features:
        """The features of a batch, None for damaged images."""
        good = [image for image in pixels if image is not None]
        if not good:
            return [None] * len(pixels)
        # Kernels round by the batch's shape: a smaller batch would give other bits.
        encoded = iter(self.encode(np.stack(good + [good[-1]] * (self.batch_size - len(good)))))
        return [None if image is None else next(encoded) for image in pixels]

    def _pixels(self, reader: ShardReader, shard: int, rows: Sequence[int]) -> Pixels:
        """The images of the given rows as the encoder sees them, uint8 [S, S, 3]; None for damaged ones."""
        refs = [SampleRef(source=0, shard=shard, row=row, pass_index=0) for row in rows]
        return [self._image(reader, ref, raw) for ref, raw in zip(refs, reader.fetch_each(refs), strict=True)]

    def _image(self, reader: ShardReader, ref: SampleRef, raw: RawSample | DamagedSampleError) -> np.ndarray | None:
        try:
            if isinstance(raw, DamagedSampleError):
                raise raw
            encoder = self.recipe.model.encoder
            return decode_image(raw.image, encoder.image_size, encoder.resize, self.recipe.data.decode.engine)
        except DamagedSampleError as damage:
            place = reader.locate(ref)
            offset, size = place.span
            ledger = Ledger(storage.join(self.folder.uri, "ledger"), STAGE)
            ledger.record(uid=place.uid, uri=place.file.uri, offset=offset, size=size, reason=damage.reason)
            return None


def load_shard_encoder(cache: FeatureCache, source: int, *, threads: int) -> ShardEncoder:
    """The encoder of source number `source`, with its weights, on the recipe's device.

    Raises `DataError` if the weights are not those of the cache's provenance.
    """
    recipe = cache.recipe
    maker = FrozenEncoder(recipe, select(recipe.parallel.device))
    expected = cache.provenance["weights_sha256"]
    if maker.weights_sha256 != expected:
        raise DataError(
            f"the encoder has weights_sha256 {maker.weights_sha256}, {expected} when the job began: stop what writes "
            "to the runs of stage.start_from, and start again"
        )
    manifest, folder = cache.sources(StageInputs(recipe).manifests)[source]
    size = recipe.parallel.encoder_batch_size or recipe.optim.micro_batch_size
    return ShardEncoder(recipe=recipe, manifest=manifest, folder=folder, encode=maker, batch_size=size, threads=threads)


def prefetch(
    pool: ThreadPoolExecutor, make: Callable[[Item], Made], items: Iterable[Item], *, ahead: int
) -> Iterator[Made]:
    """`make(item)` of every item in order. The pool begins with the first `ahead` items at once, and then with one more
    before each result is waited for.
    """
    rest = iter(items)
    waiting: deque[Future[Made]] = deque(pool.submit(make, item) for item in islice(rest, ahead))

    def results() -> Iterator[Made]:
        for item in rest:
            waiting.append(pool.submit(make, item))
            yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    return results()
