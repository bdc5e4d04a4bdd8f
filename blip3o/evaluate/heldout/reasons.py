"""Why a figure is null, for every null in the figures of an evaluation or in the summary of a demo."""

import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

Around = Mapping[str, Any]  # the figures next to the one that is null, and the `n` above them

# R@k as the name of a figure, or of one with parts; a source may be named flickr30.
_RECALL = re.compile(r"[._]r(\d+)(?:\.(?:value|interval|shuffled|chance))?$")
# Pattern of a figure's dotted name → why it is null. The first that matches counts.
_REASONS: tuple[tuple[str, str | Callable[[Around], str]], ...] = (
    ("understanding", "no held-out sample has questions (`qa` in its record)"),
    ("understanding.open.*chance", "open questions have no chance level"),
    ("understanding.two_way.*", "no question has two choices"),
    ("understanding.open.*", "no question is open"),
    ("understanding.*", "no question has three or more choices"),
    ("scenes", "no held-out sample is a scene of `blip3o data build scenes`"),
    ("scenes*.color", "no caption that was drawn states a color"),
    ("scenes*.relation", "no caption that was drawn states a relation"),
    ("held_out.captions_in_training", lambda around: str(around["note"])),
    ("own.diversity", "one prompt is drawn, and diversity compares two or more"),
    ("own.diversity.own_diversity", "drawings of different prompts are all equal"),
    ("stages.*.mfu", "the peak of the device is not known: set parallel.peak_tflops"),
    ("stages.*.padding", "no part of the model is padded"),
)


def null_reasons(figures: Mapping[str, Any]) -> dict[str, str]:
    """The reason of each null in nested figures, by its dotted name."""
    return {name: _reason(name, around) for name, around in _nulls(figures, "", None)}


def _nulls(figures: Mapping[str, Any], prefix: str, n: int | None) -> Iterator[tuple[str, Around]]:
    around = {"n": n, **figures}
    for key, value in figures.items():
        if value is None:
            yield f"{prefix}{key}", around
        elif isinstance(value, Mapping):
            yield from _nulls(value, f"{prefix}{key}.", around["n"])


def _reason(name: str, around: Around) -> str:
    if recall := _RECALL.search(name):
        return f"R@{recall[1]} of {around['n']} images is 1 by chance: it needs more than {recall[1]}"
    for pattern, reason in _REASONS:
        if fnmatchcase(name, pattern):
            return reason if isinstance(reason, str) else reason(around)
    return f"not defined for these samples (n = {around['n']})"
