"""Scores replies to questions about images: exact match, the chance level, and an interval. Pure.

Three groups are never mixed: closed questions with at least three choices (the headline, because guessing rarely
answers them), two-way ones (yes/no and the like, half of which a coin answers), and open ones, which have no chance
level. A reply outside the choices is wrong and counted as such; no choice is ever guessed on the model's behalf.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blip3o.data.text.normalise import normalise
from blip3o.evaluate.metrics.intervals import RESAMPLES, wilson_at_the_edges
from blip3o.rng import numpy_generator

MIN_CHOICES = 3  # of a headline question


@dataclass(frozen=True, kw_only=True)
class AnswerRecord:
    """One question about the image `uid`, its true answer, and the reply. An open question has no choices."""

    uid: str
    source: str
    kind: str
    question: str
    choices: tuple[str, ...]
    answer: str
    reply: str

    @property
    def correct(self) -> bool:
        """Whether reply and answer are equal after `normalise`."""
        return normalise(self.reply) == normalise(self.answer)

    @property
    def unparsed(self) -> bool:
        """Whether the reply is none of the choices of a closed question."""
        return bool(self.choices) and normalise(self.reply) not in {normalise(choice) for choice in self.choices}


def score(records: Sequence[AnswerRecord], *, seed: int) -> dict[str, Any]:
    """The scores as they go into evaluation.json.

    `accuracy`, `chance` (mean of one over the number of choices), `interval` (95 %, bootstrapped over questions from
    `seed`; Wilson's where the bootstrap reaches 0 or 1), `n`, `n_unparsed`, `by_kind` and `by_source` are those of the
    headline questions; `two_way` and `open` hold the same for their groups, without the interval. Figures of an empty
    group, and the chance level of open questions, are None.
    """
    groups: dict[str, list[AnswerRecord]] = defaultdict(list)
    for record in records:
        groups[_group(record)].append(record)
    headline = groups["headline"]
    return {
        **_tally(headline),
        "interval": _interval([record.correct for record in headline], seed),
        "by_kind": _split(headline, lambda record: record.kind),
        "by_source": _split(headline, lambda record: record.source),
        **{
            name: _tally(groups[name]) | {"by_kind": _split(groups[name], lambda r: r.kind)}
            for name in ("two_way", "open")
        },
    }


def _group(record: AnswerRecord) -> str:
    if not record.choices:
        return "open"
    return "headline" if len(record.choices) >= MIN_CHOICES else "two_way"


def _split(records: Sequence[AnswerRecord], key: Callable[[AnswerRecord], str]) -> dict[str, Any]:
    return {name: _tally([r for r in records if key(r) == name]) for name in sorted({key(r) for r in records})}


def _tally(records: Sequence[AnswerRecord]) -> dict[str, Any]:
    closed = [1 / len(record.choices) for record in records if record.choices]
    return {
        "accuracy": _mean([record.correct for record in records]),
        "chance": _mean(closed),
        "n": len(records),
        "n_unparsed": sum(record.unparsed for record in records),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _interval(correct: Sequence[bool], seed: int) -> list[float] | None:
    if not correct:
        return None
    drawn = numpy_generator(seed, "evaluate", "bootstrap").integers(len(correct), size=(RESAMPLES, len(correct)))
    low, high = np.quantile(np.asarray(correct, dtype=float)[drawn].mean(axis=1), [0.025, 0.975])
    return list(wilson_at_the_edges((float(low), float(high)), sum(correct) / len(correct), [len(correct)]))
