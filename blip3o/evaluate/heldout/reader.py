"""Reads the held-out samples of an evaluation: some of each source, in a random order of the evaluation's seed.

It reads little more than is used. It refuses a sample whose record says that it was trained on, because a figure on
training data looks like any other.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from blip3o.config.recipe import DataConfig, EvaluateConfig
from blip3o.data.images.decode import open_image
from blip3o.data.order.sample_order import SourceRows
from blip3o.data.order.selection import source_rows
from blip3o.data.shards.fetch import ShardReader
from blip3o.data.shards.locations import source_locations
from blip3o.data.shards.manifest import Manifest, check_unchanged, read_manifest
from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.heldout.selection import (
    HeldOutSample,
    Question,
    alternate,
    distinct_captions,
    pick_questions,
    shares,
)
from blip3o.rng import numpy_generator
from blip3o.types import RawSample, SampleRef

READ_TOGETHER = 64  # samples of one batch of range reads


@dataclass(frozen=True, kw_only=True)
class EvaluationSamples:
    """What an evaluation draws (`items`) and asks (`questions`), and the manifests' fingerprints. Sources alternate."""

    items: tuple[HeldOutSample, ...]
    questions: tuple[Question, ...]
    fingerprints: dict[str, str]


def choose(data: DataConfig, evaluate: EvaluateConfig) -> EvaluationSamples:
    """The evaluation's samples, a function of the held-out manifests and of `evaluate`.

    There are fewer than configured where the sources run out of distinct captions or of images with questions. Raises
    `ConfigError` if no held-out source is named, `DataError` if one is not indexed, has changed, or was trained on.
    """
    if not evaluate.sources:
        raise ConfigError("evaluate.sources is empty: name held-out sources, e.g. {name: held, shards: held/*.tar}")
    manifests = [read_manifest(location.manifest) for location in source_locations(data, evaluate.sources)]
    for manifest in manifests:
        check_unchanged(manifest)
    held_out = HeldOutReader(manifests, source_rows(evaluate.sources, manifests), evaluate.seed)
    weights = [source.weight for source in evaluate.sources]
    drawn: list[list[HeldOutSample]] = []
    for source, share in enumerate(shares(weights, evaluate.images)):
        # Captions must differ across sources as well, since retrieval runs over all of them.
        taken = [item.caption for group in drawn for item in group]
        drawn.append(distinct_captions(held_out.stream(source), share, taken=taken))
    asked = [
        pick_questions(held_out.stream(source), share)
        for source, share in enumerate(shares(weights, evaluate.questions))
    ]
    return EvaluationSamples(
        items=tuple(alternate(drawn)),
        questions=tuple(alternate(asked)),
        fingerprints={manifest.name: manifest.fingerprint for manifest in manifests},
    )


class HeldOutReader:
    """Held-out sources, each as a stream of its usable rows in one random order."""

    def __init__(self, manifests: list[Manifest], sources: list[SourceRows], seed: int) -> None:
        self._manifests, self._sources, self._seed = manifests, sources, seed
        self._reader = ShardReader(manifests)

    def stream(self, source: int) -> Iterator[HeldOutSample]:
        """All items of source number `source`. Raises `DataError` for a sample that was trained on."""
        name = self._manifests[source].name
        rows = self._sources[source]
        order = numpy_generator(self._seed, "evaluate", "order", name).permutation(len(rows))
        for start in range(0, len(order), READ_TOGETHER):
            shards, ordinals = rows.locate(order[start : start + READ_TOGETHER])
            places = zip(shards.tolist(), ordinals.tolist(), strict=True)
            refs = [SampleRef(source=source, shard=shard, row=row, pass_index=0) for shard, row in places]
            for sample in self._reader.fetch(refs):
                yield _item(name, sample)


def _item(source: str, sample: RawSample) -> HeldOutSample:
    if sample.meta.get("split", "heldout") != "heldout":
        raise DataError(f"{sample.uid} belongs to the split '{sample.meta['split']}': name a held-out source instead")
    return HeldOutSample(
        uid=sample.uid,
        source=source,
        caption=sample.caption,
        record=sample.meta,
        image=open_image(sample.image),
    )
