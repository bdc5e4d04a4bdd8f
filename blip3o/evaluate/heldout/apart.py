"""How far held-out samples are apart from training: what was held out, and which captions training has as well.

A share of pictures that is held out leaves equal captions on both sides; a share of concepts or compositions does not
say that every caption is new. So captions are compared, with as many of the training sources as is quick to read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blip3o.config.recipe import DataConfig
from blip3o.data.order.sample_order import SourceRows
from blip3o.data.order.selection import source_rows
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.fetch import ShardReader
from blip3o.data.shards.locations import source_locations
from blip3o.data.shards.manifest import Manifest, read_manifest
from blip3o.data.text.normalise import normalise
from blip3o.errors import DataError, StorageError
from blip3o.evaluate.heldout.selection import HeldOutSample
from blip3o.types import RawSample, SampleRef

COMPARED = 20_000  # training samples that are read at most, spread over all
COMPARED_BYTES = 256 * 2**20  # and their bytes
READ_TOGETHER = 512  # samples of one batch of range reads
# What sets of this project hold out, by the `source` in a sample's record.
_SETS = {"scenes": "compositions", "emoji": "concepts", "import": "pictures"}


@dataclass(frozen=True, kw_only=True)
class Apart:
    """What was `held_out` of each source (compositions, captions, …), and of the evaluation's `captions` how many are
    `trained` as well, among those of `compared` of all `training` samples. `trained` is None if they cannot be read,
    for a `reason`.
    """

    held_out: dict[str, str]
    captions: int
    trained: int | None
    compared: int
    training: int
    reason: str = ""

    def figures(self) -> dict[str, Any]:
        """What goes into evaluation.json."""
        return {
            "held_out": self.held_out,
            "captions": self.captions,
            "captions_in_training": self.trained,
            "training_samples_compared": self.compared,
            "training_samples": self.training,
            "note": self.note(),
        }

    @property
    def kinds(self) -> str:
        """What was held out, in words."""
        return ", ".join(dict.fromkeys(self.held_out.values()))

    def note(self) -> str:
        """The figures in words."""
        among = f"{self.compared} training samples"
        among += f" (of {self.training})" if self.compared < self.training else ""
        if self.trained is None:
            seen = f"Whether training has their captions is not known: {self.reason}."
        elif self.trained:
            seen = f"Of {self.captions} captions, {self.trained} are also among {among}."
        else:
            seen = f"None of {self.captions} captions is among {among}."
        return f"Held out: {self.kinds}. {seen}"


def compare(data: DataConfig, items: Sequence[HeldOutSample]) -> Apart:
    """Compares items with the training sources of a recipe. Sources that cannot be read are a reason, not an error."""
    held_out = {item.source: _kind(item) for item in items}
    captions = {normalise(item.caption) for item in items}
    try:
        manifests = [read_manifest(location.manifest) for location in source_locations(data, data.sources)]
        rows = source_rows(data.sources, manifests)
        refs = [ref for source in range(len(rows)) for ref in _spread(source, rows, manifests)]
        trained = {normalise(caption) for sample in _read(manifests, refs) for caption in _captions(sample)}
    except (DataError, StorageError) as error:
        return Apart(held_out=held_out, captions=len(captions), trained=None, compared=0, training=0, reason=str(error))
    return Apart(
        held_out=held_out,
        captions=len(captions),
        trained=len(captions & trained),
        compared=len(refs),
        training=sum(map(len, rows)),
    )


def _kind(item: HeldOutSample) -> str:
    if item.record.get("grouped_by") == "caption":
        return "captions"
    return _SETS.get(str(item.record.get("source")), "samples")


def _spread(source: int, rows: Sequence[SourceRows], manifests: Sequence[Manifest]) -> list[SampleRef]:
    """As many samples of a source as there is room for, at equal distances."""
    of_all = sum(map(len, rows))
    size = sum(shard.size for manifest in manifests for shard in manifest.shards) / of_all
    room = min(COMPARED, COMPARED_BYTES / size) / of_all
    count = max(round(len(rows[source]) * min(room, 1.0)), 1)
    places = np.linspace(0, len(rows[source]) - 1, count).astype(np.int64)
    shards, ordinals = rows[source].locate(places)
    return [
        SampleRef(source=source, shard=shard, row=row, pass_index=0)
        for shard, row in zip(shards.tolist(), ordinals.tolist(), strict=True)
    ]


def _read(manifests: Sequence[Manifest], refs: Sequence[SampleRef]) -> Iterator[RawSample]:
    """The samples that can be read: what training would replace is left out."""
    reader = ShardReader(manifests)
    for start in range(0, len(refs), READ_TOGETHER):
        for found in reader.fetch_each(refs[start : start + READ_TOGETHER]):
            if not isinstance(found, DamagedSampleError):
                yield found


def _captions(sample: RawSample) -> list[str]:
    return [sample.caption, *(sample.meta.get("captions") or [])]
