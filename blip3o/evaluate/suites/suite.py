"""What every benchmark is made of: items to draw or answer, a judge's findings on each, and a score that can be
believed. Pure.

A score carries what it rests on. Findings that are missing or could not be read are counted and never scored, nothing
is guessed in their place, and an overall over part of the items is refused. `comparable` is true only where items
(with every field that decides a verdict), judge, samples, protocol and coverage are the official ones; `why_not` names
each that is not.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.metrics.intervals import checked
from blip3o.rng import numpy_generator

SEED_BITS = 52  # what the images API takes: below 2^53, with room for the further images of one request
RESAMPLES = 2000  # of the bootstrap
_BROKEN = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # in a file's name
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # half of a pair, which no UTF-8 text can have


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
    a judge that answers in words said, verbatim. `sources` are the sha256 of other files that the finding rests on, by
    URI: a reference picture, for example.
    """

    key: str
    sample: int
    value: Mapping[str, Any] | None
    fault: str = ""
    reply: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)


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
    """Who judged: a name such as `mask2former-swin-s+clip-vit-l-14`, and the version of its weights or program.

    `source` names the file that its findings were read from, by its sum ("": it was asked). Findings of two sources are
    never mixed, but both may be of one judge.
    """

    id: str
    version: str
    source: str = ""

    def same(self, other: "Judge") -> bool:
        """Whether both are one judge, wherever their findings come from."""
        return replace(self, source="") == replace(other, source="")


@dataclass(frozen=True, kw_only=True)
class Score:
    """A suite's result with all that it rests on. `overall` is None where the coverage is incomplete.

    `categories` are the benchmark's own parts (None: nothing of it was scored) and `details` further figures;
    `interval` is the overall's 95 % interval over items (see `bootstrap`). `best` is the highest possible overall; None
    where there is none and less is better.
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

    def facts(self, item: Item) -> Mapping[str, Any]:
        """What decides an item's verdicts besides its key, prompt and number of samples: what its digest covers."""
        return item.record

    def image_path(self, item: Item, sample: int) -> str:
        """The drawing's path relative to the suite's folder, with `/` between folders: one for each item and sample.

        The official layout begins below `images/`. Nothing else may lie there, unfinished files least of all: official
        scorers would take them in. A suite that asks has none. Raises `ConfigError` for a sample that the layout has no
        place for.
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


def only_sample(suite: str, sample: int) -> None:
    """Raises `ConfigError` for a second sample where a suite has a place for one of each item."""
    if sample:
        raise ConfigError(f"{suite} has a place for one sample of each item: give --samples 1, or leave the option out")


def check_keys(items: Sequence[Item], where: str) -> None:
    """Raises `DataError` for two items of one key, which would share their files, keys that leave the folder or that no
    file can have, and texts with half of a surrogate pair.
    """
    for item in items:
        if broken := _BROKEN.search(item.key) or _SURROGATE.search(item.prompt):
            raise DataError(f"{where}: key or prompt of {item.key!r} has the character {broken[0]!r}: remove it")
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


def bootstrap(groups: Sequence[Sequence[float]], *key: int | str, best: float = 1.0) -> tuple[float, float] | None:
    """95 % interval of the mean of group means (each group: one category's items), drawing items anew in each group.

    Values are between 0 and `best`. The draws are a function of `key`. Where the bootstrap says nothing, at the edges
    of the scale, the interval is Wilson's (`blip3o.evaluate.metrics.intervals`). None where a group is empty or there
    is none.
    """
    if not groups or not all(groups):
        return None
    generator = numpy_generator("bootstrap", *key)
    means = np.zeros(RESAMPLES)
    for group in groups:
        values = np.asarray(group, dtype=float)
        means += values[generator.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means / len(groups), [0.025, 0.975]) / best
    share = sum(sum(group) / len(group) for group in groups) / len(groups) / best
    low, high = checked((float(low), float(high)), share, [len(group) for group in groups])
    return low * best, high * best


def _whole_record(item: Item) -> Mapping[str, Any]:
    return item.record


def items_digest(items: Iterable[Item], facts: Callable[[Item], Mapping[str, Any]] = _whole_record) -> str:
    """sha256 over all that decides verdicts, in the items' order: keys, prompts, samples and `facts` (`Suite.facts`).

    Facts count by their value and not by how they are written: the order of an object's keys changes nothing.
    """
    digest = hashlib.sha256()
    for item in items:
        digest.update(_canonical(item, facts).encode() + b"\n")
    return digest.hexdigest()


def _canonical(item: Item, facts: Callable[[Item], Mapping[str, Any]]) -> str:
    return json.dumps([item.key, item.prompt, item.samples, facts(item)], sort_keys=True)


def differing(items: Sequence[Item], official: Sequence[Item], facts: Callable[[Item], Mapping[str, Any]]) -> list[str]:
    """The keys of the items that are not the official ones in their place; their number of samples does not count."""
    pairs = zip(items, official, strict=True)
    return [i.key for i, o in pairs if _canonical(i, facts) != _canonical(replace(o, samples=i.samples), facts)]


INCOMPLETE = "findings are missing or could not be read"


def reasons(checks: Mapping[str, bool]) -> tuple[str, ...]:
    """The reasons, in their order, that hold: `{"why not": whether it is so}`."""
    return tuple(reason for reason, holds in checks.items() if holds)
