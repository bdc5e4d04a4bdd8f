"""What the ways share: a store with shards in it, their index, and the function from a sample to its arrays."""

import dataclasses
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blip3o import settings, storage
from blip3o.config.load import build_recipe
from blip3o.config.objectives import Task
from blip3o.config.recipe import Recipe
from blip3o.data.batches import MicroBatchBuilder, SampleEncoder, build_micro_batches
from blip3o.data.inputs import StageInputs
from blip3o.data.sets.writer import Sample, shard_bytes
from blip3o.data.shards.manifest import write_manifest, write_shard_index
from blip3o.data.shards.scan import scan_shard
from blip3o.data.text.tokenizer import ChatTokenizer
from cluster.local_s3 import LocalS3

BUCKET, SOURCE, BATCH = "bench", "photos", 32
DISTINCT = 64  # pictures; their captions differ
WORDS = "a small red old quiet house boat tree road hill beside under behind the river market night morning".split()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement: shards below `root`, the side in pixels of the arrays (`size`), the `cores` it may use, a local
    folder for the files of a way, and the batch to start with.
    """

    root: str
    size: int
    cores: int
    folder: str
    start: int = 0

    @property
    def recipe(self) -> Recipe:
        """The order and the text of the run; the model plays no part."""
        return build_recipe(
            {
                "run": {"name": "bench", "storage": f"{self.folder}/runs"},
                "data": {
                    "root": self.root,
                    "sources": [{"name": SOURCE, "shards": f"{SOURCE}/train-*.tar"}],
                    "tokenizer": "tokenizer.json",
                    "max_length": 128,
                },
                "model": {"preset": "nano"},
                "stage": {"name": "generate"},
                "optim": {"steps": 1, "lr": 1e-3, "micro_batch_size": BATCH, "micro_batches": 1},
                "parallel": {"workers": 1, "device": "cpu", "precision": "fp32"},
                "checkpoint": {"every": 1},
            }
        )

    def builder(self) -> MicroBatchBuilder:
        """Our micro-batch function."""
        made = build_micro_batches(StageInputs(self.recipe), Task.GENERATE)
        sized = dataclasses.replace(made.encoder, sizes={"encoder_pixels": self.size})
        return dataclasses.replace(made, encoder=sized)

    def encoder(self) -> SampleEncoder:
        """The function from a sample to its arrays, the same for every way."""
        return self.builder().encoder


@contextmanager
def empty_store() -> Iterator[str]:
    """A store with an empty bucket, which this process's environment points at.

    Yields a local folder, which is removed at the end.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, LocalS3(data_dir=Path(folder, "s3")) as store:
        settings.override(store.environment | {"S3_ENDPOINT_URL": store.endpoint})
        storage.forget_clients()
        store.create_bucket(BUCKET)
        yield folder


@contextmanager
def world(*, shards: int, per_shard: int, sides: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """A store with indexed shards in it: the URI of the data, and a local folder."""
    with empty_store() as folder:
        root = f"s3://{BUCKET}/data"
        fill(root, shards=shards, per_shard=per_shard, sides=sides)
        yield root, folder


def fill(root: str, *, shards: int, per_shard: int, sides: tuple[int, int]) -> float:
    """Writes shards of `per_shard` JPEGs of `sides` (width, height), index, manifest and tokenizer below `root`.

    Returns the seconds that indexing took in this process.
    """
    pictures = [picture(number, sides) for number in range(DISTINCT)]
    tokenizer = ChatTokenizer.train([" ".join(WORDS)], 400)
    storage.write_bytes(f"{root}/tokenizer.json", tokenizer.to_bytes())
    for shard in range(shards):
        numbers = range(shard * per_shard, (shard + 1) * per_shard)
        data = shard_bytes(_sample(number, pictures) for number in numbers)
        storage.write_bytes(f"{root}/{SOURCE}/train-{shard:05d}.tar", data)
    begun = time.perf_counter()
    manifest = f"{root}/manifests/{SOURCE}"
    rows = []
    for number, file in enumerate(storage.list_files(f"{root}/{SOURCE}")):
        scan = scan_shard(file, source=SOURCE, shard=number)
        rows.append(write_shard_index(manifest, file, scan).row)
    write_manifest(manifest, SOURCE, rows)
    return time.perf_counter() - begun


def _sample(number: int, pictures: list[bytes]) -> Sample:
    words = np.random.default_rng(number).choice(WORDS, 12)
    record: dict[str, Any] = {"captions": [" ".join(words)], "number": number}
    return Sample(key=f"{number:08d}", image=pictures[number % len(pictures)], ext="jpg", record=record)


def picture(seed: int, sides: tuple[int, int]) -> bytes:
    """A JPEG with the size and the decoding cost of a photograph: smooth shapes and grain."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (12, 16, 3), np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize(sides, Image.Resampling.BICUBIC), np.int16)
    grain = generator.normal(0, 8, (*image.shape[:2], 1))
    sink = io.BytesIO()
    Image.fromarray(np.clip(image + grain, 0, 255).astype(np.uint8)).save(sink, "JPEG", quality=90)
    return sink.getvalue()
