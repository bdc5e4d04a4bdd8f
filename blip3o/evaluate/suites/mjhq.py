"""MJHQ-30K: how far drawings of its prompts lie from its pictures, in some network's features. Pure.

The published figures are of three protocols that differ in size and resizing, so the one that was used is part of the
judge's version. Source: the data set's card, and FID's paper (https://arxiv.org/abs/1706.08500).
"""

from collections.abc import Iterable, Sequence

import numpy as np

from blip3o.data.storage import read_bytes
from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.moments import Moments, frechet, frechet_name, mmd
from blip3o.evaluate.suite import (
    INCOMPLETE,
    Coverage,
    Item,
    Judge,
    Judgement,
    Score,
    Suite,
    findings,
    only_sample,
    reasons,
)
from blip3o.evaluate.suites.files import json_value, require

OFFICIAL_ITEMS = 30_000
FIELDS = ("category", "prompt")


class Mjhq(Suite):
    """The user's copy of `meta_data.json`; a finding is {"generated": [d], "reference": [d]}: both features."""

    name = "mjhq"
    protocol = "Fréchet distance of features, named by network; less is better"
    samples = 1

    def items(self, source: str | None) -> tuple[Item, ...]:
        """The prompts of a JSON object {key: {category, prompt}}. Raises `ConfigError`, `DataError`."""
        if source is None:
            raise ConfigError("mjhq ships no prompts: name your copy of meta_data.json")
        rows = json_value(read_bytes(source), source)
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
        """The true picture's path below the data set's folder: `<category>/<key>.jpg`."""
        return f"{item.record['category']}/{item.key}.jpg"

    def score(self, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge) -> Score:
        """The distance over all pairs of features; `judge.id` is the network's name, `judge.version` starts with the
        sha256 of its weights. See `distances` for findings that are summed elsewhere. Raises `DataError` for too few.
        """
        values, coverage = findings(items, judgements)
        if not values:
            return self.distances(None, None, coverage, judge)
        generated, reference = (
            Moments.of(np.array([value[name] for value in values.values()])) for name in ("generated", "reference")
        )
        return self.distances(generated, reference, coverage, judge)

    def distances(
        self, generated: Moments | None, reference: Moments | None, coverage: Coverage, judge: Judge
    ) -> Score:
        """The score from moments of both sets, which parts of the data can make apart and add up."""
        whole = coverage.complete and generated is not None and reference is not None
        name = frechet_name(judge.id, judge.version)
        distance = frechet(generated, reference) if whole and generated and reference else None
        discrepancy = mmd(generated, reference) if whole and generated and reference else None
        why_not = {
            f"{coverage.n_expected} prompts instead of {OFFICIAL_ITEMS}": coverage.n_expected != OFFICIAL_ITEMS,
            f"{name} is not FID: the network's weights are not the official Inception's": name != "fid",
            "the data set's digest is not on record, and published figures use three ways of resizing": True,
            INCOMPLETE: not whole,
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
