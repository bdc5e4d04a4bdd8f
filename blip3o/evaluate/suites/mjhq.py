"""MJHQ-30K: how far images of its prompts are from its reference images, in the features of some network. Pure.

Published figures follow three protocols that differ in size and resizing, so the protocol is part of the judge's
version. Source: the data set's card, and FID's paper (https://arxiv.org/abs/1706.08500).
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from blip3o import storage
from blip3o.data.images.decode import open_image
from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.judges.runner import JudgeRequest, JudgeRunner, load_plug_in, split_spec
from blip3o.evaluate.metrics.distribution_distance import Moments, frechet_distance, frechet_name, mmd, too_few
from blip3o.evaluate.records import Coverage, Item, Judge, Judgement, Score
from blip3o.evaluate.suites.parsing import json_value, require
from blip3o.evaluate.suites.suite import INCOMPLETE, Suite, collect_values, only_sample, reasons

OFFICIAL_ITEMS = 30_000
FIELDS = ("category", "prompt")


class Mjhq(Suite):
    """The user's copy of `meta_data.json`; a judgement holds both features: {"generated": [d], "reference": [d]}."""

    name = "mjhq"
    protocol = "Fréchet distance of features, named by network; less is better"
    samples = 1

    def items(self, source: str | None) -> tuple[Item, ...]:
        """The prompts of a JSON object {key: {category, prompt}}. Raises `ConfigError`, `DataError`."""
        if source is None:
            raise ConfigError("mjhq ships no prompts: name your copy of meta_data.json")
        rows = json_value(storage.read_bytes(source), source)
        if not isinstance(rows, dict):
            raise DataError(f"{source} is a {type(rows).__name__}: expected {{key: {{category, prompt}}}}")
        for key, row in rows.items():
            require(row, FIELDS, f"{source}, '{key}'", texts=FIELDS)
        return tuple(Item(key=key, prompt=row["prompt"], record=row, samples=1) for key, row in rows.items())

    def image_path(self, item: Item, sample: int) -> str:
        """`images/<key>.png`, one flat folder. Raises `ConfigError` for a second sample."""
        only_sample(self.name, sample)
        return f"images/{item.key}.png"

    def reference_path(self, item: Item) -> str:
        """The reference image's path below the data set's folder: `<category>/<key>.jpg`."""
        return f"{item.record['category']}/{item.key}.jpg"

    def judgement(self, item: Item, sample: int, generated: Sequence[float], reference: Sequence[float]) -> Judgement:
        """The judgement of both images' features; a fault where they are not finite."""
        if not np.isfinite([*generated, *reference]).all():
            return Judgement(key=item.key, sample=sample, value=None, fault="the network's features are not finite")
        return Judgement(
            key=item.key, sample=sample, value={"generated": list(generated), "reference": list(reference)}
        )

    def score(self, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge) -> Score:
        """The distance between both sets of features; `judge.id` is the network's name.

        `judge.version` starts with the sha256 of its weights. See `distances` for features that are summed elsewhere.
        Raises `DataError` for features of different lengths.
        """
        values, coverage = collect_values(items, judgements)
        if not values:
            return self.distances(None, None, coverage, judge)
        widths = {len(value[name]) for value in values.values() for name in ("generated", "reference")}
        if len(widths) > 1:
            raise DataError(
                f"features of {min(widths)} to {max(widths)} dimensions are not of one network: judge again"
            )
        generated, reference = (
            Moments.of(np.array([value[name] for value in values.values()])) for name in ("generated", "reference")
        )
        return self.distances(generated, reference, coverage, judge)

    def distances(
        self, generated: Moments | None, reference: Moments | None, coverage: Coverage, judge: Judge
    ) -> Score:
        """The score from the moments of both sets, which parts of the data can compute separately and add up.

        With fewer than ten images per feature dimension there is no Fréchet distance (`why_not` has the numbers), but
        there is an MMD, which takes two images.
        """
        # With incomplete coverage neither distance is computed: the missing images would bias it.
        both = (generated, reference) if coverage.complete and generated and reference else None
        name = frechet_name(judge.id, judge.version)
        few = too_few(*both) if both else ""
        distance = frechet_distance(*both) if both and not few else None
        discrepancy = mmd(*both) if both and min(both[0].n, both[1].n) > 1 else None
        why_not = {
            f"no {name}: {few}": bool(few),
            f"{coverage.n_expected} prompts instead of {OFFICIAL_ITEMS}": coverage.n_expected != OFFICIAL_ITEMS,
            f"{name} is not FID: the network's weights are not the official Inception's": name != "fid",
            "the data set's digest is not on record, and published figures use three ways of resizing": True,
            INCOMPLETE: not both,
        }
        return Score(
            suite=self.name,
            protocol=self.protocol,
            judge=judge,
            coverage=coverage,
            overall=distance,
            categories={},
            comparable=False,
            why_not=reasons(why_not),
            best=None,
            details={name: distance, f"mmd_{judge.id}": discrepancy, "n": coverage.n_scored},
        )


def make_judge(request: JudgeRequest) -> JudgeRunner:
    """A plug-in `f(image) -> [d]`: features of generated images, and of the data set's images next to the source.

    Raises `ConfigError` without a plug-in or a source.
    """
    features, judge = load_plug_in(*split_spec("mjhq", request.spec, "MODULE:FUNCTION"))
    if request.source is None:
        raise ConfigError("mjhq compares with the data set's pictures: name its meta_data.json with --source mjhq=…")
    folder = storage.normalize(request.source.rpartition("/")[0] or ".")
    suite = Mjhq()

    def vector(data: bytes) -> list[float]:
        return [float(value) for value in features(open_image(data))]

    def judge_sample(item: Item, sample: int, data: bytes) -> Judgement:
        uri = storage.join(folder, suite.reference_path(item))
        reference = storage.read_bytes(uri)
        found = suite.judgement(item, sample, vector(data), vector(reference))
        return replace(found, sources={uri: hashlib.sha256(reference).hexdigest()})

    return JudgeRunner(judge=judge, judge_sample=judge_sample)
