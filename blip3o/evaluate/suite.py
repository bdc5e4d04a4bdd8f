"""What every benchmark is made of: items to draw or answer, a judge's findings on each, and a score that can be
believed. Pure.

A score carries what it rests on. Findings that are missing or could not be read are counted and never scored, nothing
is guessed in their place, and an overall over part of the items is refused. `comparable` is true only where suite,
prompts, judge, samples and protocol are the official ones; `why_not` names each that is not.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from blip3o.errors import ConfigError, DataError
from blip3o.rng import numpy_generator

SEED_BITS = 52  # what the images API takes: below 2^53, with room for the further images of one request
RESAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True, kw_only=True)
class Item:
    """One prompt or question of a suite: `samples` drawings or replies are asked for.

    `key` is unique in the suite and is part of file names; `record` is the benchmark's own row.
    """

    key: str
    prompt: str
    record: Mapping[str, Any]
    samples: int


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a judge found in sample number `sample` of item `key`.

    `value` None: the judge failed or its reply could not be read, and `fault` says how ("" otherwise). `reply` is what
    a judge that answers in words said, verbatim.
    """

    key: str
    sample: int
    value: Mapping[str, Any] | None
    fault: str = ""
    reply: str = ""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many findings a score should rest on (`n_expected`), and what became of them."""

    n_expected: int
    n_scored: int
    n_missing: int
    n_parse_failed: int

    @property
    def complete(self) -> bool:
        """Whether every expected finding is there and was scored."""
        return self.n_scored == self.n_expected > 0


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Who judged: a name such as `mask2former-swin-s+clip-vit-l-14`, and the version of its weights or program."""

    id: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Score:
    """A suite's result with all that it rests on. `overall` is None where the coverage is incomplete.

    `categories` are the benchmark's own parts (None: nothing of it was scored) and `details` further figures;
    `interval` is the overall's 95 % bootstrap interval over items. `best` is the highest possible overall; None where
    there is none and less is better.
    """

    suite: str
    protocol: str
    judge: Judge
    coverage: Coverage
    overall: float | None
    categories: Mapping[str, float | None]
    comparable: bool
    why_not: tuple[str, ...]
    best: float | None = 1.0
    interval: tuple[float, float] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The fields as they go into score.json."""
        return asdict(self)


class Suite(Protocol):
    """A benchmark: what to draw or ask, where its files lie, and how findings become a score.

    `protocol` names the official way of scoring that `score` follows; `samples` is how many are drawn of each item. A
    suite of kind `draw` wants images of its prompts; one of kind `ask` wants replies to its prompts, each about the
    image `record["image"]` (a URI), and takes findings {"reply": str}.
    """

    name: str
    protocol: str
    samples: int
    kind: Literal["draw", "ask"] = "draw"

    def items(self, source: str | None) -> tuple[Item, ...]:
        """The items, from a file or folder URI where the suite doesn't carry them itself.

        Raises `ConfigError` if a needed source isn't named, `DataError` if it isn't in the benchmark's format.
        """
        ...

    def image_path(self, item: Item, sample: int) -> str:
        """The drawing's path relative to the suite's folder, with `/` between folders.

        The official layout begins below `images/`. Nothing else may lie there, unfinished files least of all: official
        scorers would take them in. A suite that asks has none.
        """
        raise ConfigError(f"{self.name} draws nothing: it asks about images that are there")

    def texts(self, items: Sequence[Item]) -> Mapping[str, str]:
        """The text files of the official layout: path relative to the suite's folder, and content."""
        return {}

    def grids(self, items: Sequence[Item]) -> Mapping[str, tuple[str, str, str, str]]:
        """The images that are made of four finished ones, where a benchmark wants 2 x 2 grids.

        Path of each grid, and those of its parts: top left, top right, bottom left, bottom right.
        """
        return {}

    def score(self, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge) -> Score:
        """The score of these findings. Raises `DataError` for findings that are doubled or of no item."""
        ...


def item_seed(suite: str, key: str, sample: int) -> int:
    """The seed of one drawing, 0 to 2^52 - 1, by sha256 of its names: the same wherever and whenever it is drawn."""
    digest = hashlib.sha256(f"{suite}\n{key}\n{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def findings(items: Sequence[Item], judgements: Iterable[Judgement]) -> tuple[dict[tuple[str, int], Any], Coverage]:
    """The readable findings by (key, sample), in the order of the items, and the coverage.

    Raises `DataError` for two items of one key, two findings on one sample, and findings on what is not there.
    """
    check_keys(items, "the items")
    expected = [(item.key, sample) for item in items for sample in range(item.samples)]
    found: dict[tuple[str, int], Judgement] = {}
    for judgement in judgements:
        place = (judgement.key, judgement.sample)
        if place in found:
            raise DataError(f"two judgements on sample {place[1]} of '{place[0]}': keep one of them")
        found[place] = judgement
    _check_places(expected, found)
    there = [found[place] for place in expected if place in found]
    values = {(one.key, one.sample): one.value for one in there if one.value is not None}
    return values, Coverage(
        n_expected=len(expected),
        n_scored=len(values),
        n_missing=len(expected) - len(there),
        n_parse_failed=len(there) - len(values),
    )


def check_keys(items: Sequence[Item], where: str) -> None:
    """Raises `DataError` for two items of one key, which would share their files, and keys that leave the folder."""
    for item in items:
        if any(part in ("", ".", "..") for part in item.key.split("/")):
            raise DataError(
                f"{where}: '{item.key}' is no key, since files are named by it: leave out empty parts and '..'"
            )
    doubled = [key for key, times in Counter(item.key for item in items).items() if times > 1]
    if doubled:
        raise DataError(
            f"{where}: {len(doubled)} items share their key with another, the first is '{doubled[0]}': keys are unique"
        )


def _check_places(expected: Sequence[tuple[str, int]], found: Iterable[tuple[str, int]]) -> None:
    strange = sorted(set(found) - set(expected))
    if strange:
        key, sample = strange[0]
        raise DataError(f"{len(strange)} judgements are of no item, the first is sample {sample} of '{key}'")


def mean(values: Iterable[float]) -> float | None:
    """The mean, or None where there is nothing."""
    all_values = [float(value) for value in values]
    return sum(all_values) / len(all_values) if all_values else None


def bootstrap(groups: Sequence[Sequence[float]], *key: int | str) -> tuple[float, float] | None:
    """95 % interval of the mean of group means (each group: one category's items), drawing items anew in each group.

    The draws are a function of `key`. None where a group is empty or there is none.
    """
    if not groups or not all(groups):
        return None
    generator = numpy_generator("bootstrap", *key)
    means = np.zeros(RESAMPLES)
    for group in groups:
        values = np.asarray(group, dtype=float)
        means += values[generator.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means / len(groups), [0.025, 0.975])
    return float(low), float(high)


def items_digest(items: Iterable[Item]) -> str:
    """sha256 over keys and prompts in their order: what `why_not` compares with the official list."""
    digest = hashlib.sha256()
    for item in items:
        for part in (item.key, item.prompt):
            data = part.encode()
            digest.update(len(data).to_bytes(4, "big") + data)
    return digest.hexdigest()


INCOMPLETE = "findings are missing or could not be read"


def reasons(checks: Mapping[str, bool]) -> tuple[str, ...]:
    """The reasons, in their order, that hold: `{"why not": whether it is so}`."""
    return tuple(reason for reason, holds in checks.items() if holds)
