"""Encoding shards with the device kept busy against one batch after the other, with a simulated device.

    python -m benchmarks.encode [--scenes 512] [--batch 16] [--milliseconds 150] [--rounds 5]

The device takes its time for a batch without holding the GIL, as a GPU does, and gives features of the 8b's shape. Both
ways read and decode the same local shards ahead, and write files of the same bytes. The other way computes, packs and
writes batch after batch, and shard after shard.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from benchmarks._measure import in_turns, options, report
from benchmarks.data_cache import prepare, source_recipe
from blip3o import storage
from blip3o.data.features.records import RecordFormat
from blip3o.data.inputs import StageInputs
from blip3o.data.shards.fetch import ShardReader
from blip3o.train.features.encode import PREFETCH, ShardEncoder, prefetch
from blip3o.train.features.encoder import FeatureCache

THREADS, SHARDS_AT_ONCE = 2, 2
RECORD = RecordFormat(dtype="bf16", tokens=64, channels=1792)


class SimulatedDevice:
    """Computes one batch at a time; the features depend on the pixels only."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._busy = seconds, threading.Lock()
        self._features = np.random.default_rng(0).standard_normal((256, RECORD.tokens, RECORD.channels), np.float32)

    def __call__(self, pixels_BSS3: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3] → features float32 [B, N, F]."""
        with self._busy:
            time.sleep(self._seconds)
        return self._features[pixels_BSS3.reshape(len(pixels_BSS3), -1).sum(1) % 256]


class BatchByBatch(ShardEncoder):
    """Decodes ahead, but gives the device a batch only when the last one is written."""

    def _features(self, shard: int, rows: Sequence[int]) -> Generator[tuple[int, np.ndarray | None]]:
        reader = ShardReader([self.manifest], threads=self.threads)
        groups = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        with ThreadPoolExecutor(self.threads) as pool:
            decoded = prefetch(pool, lambda group: self._pixels(reader, shard, group), groups, ahead=PREFETCH)
            for group, pixels in zip(groups, decoded, strict=True):
                yield from zip(group, self._encoded(pixels), strict=True)


def _encoder(root: str, arguments: argparse.Namespace) -> ShardEncoder:
    recipe = source_recipe(root, arguments, features="cache")
    ((manifest, folder),) = FeatureCache.of(recipe).sources(StageInputs(recipe).manifests)
    return ShardEncoder(
        recipe=recipe,
        manifest=manifest,
        folder=replace(folder, record=RECORD),
        encode=SimulatedDevice(arguments.milliseconds / 1e3),
        batch_size=arguments.batch,
        threads=THREADS,
    )


def _write(work: ShardEncoder, at_once: int) -> list[bytes]:
    """Encodes every shard, and returns the files."""
    shards = [row.shard for row in work.manifest.shards]
    with ThreadPoolExecutor(at_once) as callers:
        list(callers.map(work.write, shards))
    return [storage.read_bytes(work.folder.file(shard)) for shard in shards]


def main(argv: list[str] | None = None) -> None:
    """Measures, compares and reports. Ends with an error if the files differ."""
    sizes = {"scenes": 512, "batch": 16, "milliseconds": 150, "rounds": 5}
    arguments, results = options(__doc__.splitlines()[0], sizes, argv)
    with tempfile.TemporaryDirectory() as root:
        prepare(root, arguments)
        work = _encoder(root, arguments)
        plain = BatchByBatch(**{name: getattr(work, name) for name in work.__dataclass_fields__})
        if _write(work, SHARDS_AT_ONCE) != _write(plain, 1):
            raise SystemExit("the two ways wrote other files: nothing to compare")
        ours, other = in_turns(lambda: _write(work, SHARDS_AT_ONCE), lambda: _write(plain, 1), rounds=arguments.rounds)
        rows = work.manifest.good_rows
    rates = {name: round(rows / statistics.median(taken), 1) for name, taken in (("ours", ours), ("other", other))}
    ceiling = round(1e3 * arguments.batch / arguments.milliseconds, 1)
    report("encode", ours, other, results, images_per_second=rates | {"device": ceiling}, sizes=vars(arguments))


if __name__ == "__main__":
    main()
