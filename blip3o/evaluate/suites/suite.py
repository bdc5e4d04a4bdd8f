"""The `Suite` interface, and what suites share: seeds, coverage, key checks and digests. Pure.

A score carries everything it rests on. Judgements that are missing or unreadable are counted and never scored, nothing
is guessed in their place, and there is no overall over only some of the items. `comparable` is true only where the
items (with every field that decides a verdict), judge, number of samples, protocol and coverage are the official ones;
`why_not` names each one that is not.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.records import Coverage, Item, Judge, Judgement, Score

SEED_BITS = 52  # the images API takes seeds below 2^53, and one request for several images needs room above its seed
_BROKEN = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # characters that no file name may contain
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # half of a pair, which UTF-8 text cannot contain


class Suite(Protocol):
    """A benchmark: what to draw or ask, where its files are, and how judgements become a score.

    `protocol` names the official scoring rule that `score` follows; `samples` is the number of samples per item. A
    suite of kind `draw` wants images of its prompts. One of kind `ask` wants replies to its prompts, each about the
    image `record["image"]` (a URI), and scores judgements {"reply": str}.
    """

    name: str
    protocol: str
    samples: int
    kind: Literal["draw", "ask"] = "draw"

    def items(self, source: str | None) -> tuple[Item, ...]:
        """The items, read from a file or folder URI where the suite does not ship them.

        Raises `ConfigError` if a required source is not given, `DataError` if it is not in the benchmark's format.
        """
        ...

    def facts(self, item: Item) -> Mapping[str, Any]:
        """What decides an item's verdicts besides its key, prompt and number of samples: what its digest covers."""
        return item.record

    def image_path(self, item: Item, sample: int) -> str:
        """The image's path relative to the suite's folder, with `/` between folders: one for each item and sample.

        The official layout starts below `images/`. It must contain no other files, above all no unfinished ones,
        because official scorers would read them. A suite of kind `ask` has no images. Raises `ConfigError` for a sample
        that the layout has no path for.
        """
        raise ConfigError(f"{self.name} draws nothing: it asks about existing images")

    def texts(self, items: Sequence[Item]) -> Mapping[str, str]:
        """The text files of the official layout: path relative to the suite's folder, and content."""
        return {}

    def grids(self, items: Sequence[Item]) -> Mapping[str, tuple[str, str, str, str]]:
        """The images that are joined from four finished ones, where a benchmark wants 2 x 2 grids.

        Maps the path of each grid to those of its tiles: top left, top right, bottom left, bottom right.
        """
        return {}

    def score(self, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge) -> Score:
        """The score of these judgements. Raises `DataError` for duplicate judgements and those of no item."""
        ...


def item_seed(suite: str, key: str, sample: int) -> int:
    """The seed of one sample, 0 to 2^52 - 1, by sha256 of its names: the same on every machine and in every run."""
    digest = hashlib.sha256(f"{suite}\n{key}\n{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)  # the top 52 bits


def collect_values(
    items: Sequence[Item], judgements: Iterable[Judgement]
) -> tuple[dict[tuple[str, int], Any], Coverage]:
    """The readable judgements' values by (key, sample), in the order of the items, and the coverage.

    Raises `DataError` for two items with the same key, two judgements of one sample, and judgements of no item.
    """
    check_keys(items, "the items")
    expected = [(item.key, sample) for item in items for sample in range(item.samples)]
    by_sample: dict[tuple[str, int], Judgement] = {}
    for judgement in judgements:
        at = (judgement.key, judgement.sample)
        if at in by_sample:
            raise DataError(f"two judgements on sample {at[1]} of '{at[0]}': keep one of them")
        by_sample[at] = judgement
    _check_expected(expected, by_sample)
    present = [by_sample[at] for at in expected if at in by_sample]
    values = {(one.key, one.sample): one.value for one in present if one.value is not None}
    return values, Coverage(
        n_expected=len(expected),
        n_scored=len(values),
        n_missing=len(expected) - len(present),
        n_parse_failed=len(present) - len(values),
    )


def only_sample(suite: str, sample: int) -> None:
    """Raises `ConfigError` for a second sample where a suite's layout has one file per item."""
    if sample:
        raise ConfigError(f"{suite} has room for one sample of each item: give --samples 1, or leave the option out")


def check_keys(items: Sequence[Item], where: str) -> None:
    """Checks that every item's files can be named by its key, and that its prompt can be written as UTF-8.

    Raises `DataError` for duplicate keys (the items would share their files), keys that leave the folder or that no
    file name can hold, and prompts with half of a surrogate pair.
    """
    for item in items:
        if broken := _BROKEN.search(item.key) or _SURROGATE.search(item.prompt):
            raise DataError(f"{where}: key or prompt of {item.key!r} has the character {broken[0]!r}: remove it")
        if any(part in ("", ".", "..") for part in item.key.split("/")):
            raise DataError(
                f"{where}: '{item.key}' is no key, since files are named by it: leave out empty parts and '..'"
            )
    duplicates = [key for key, times in Counter(item.key for item in items).items() if times > 1]
    if duplicates:
        raise DataError(
            f"{where}: {len(duplicates)} items share their key with another, the first is '{duplicates[0]}': "
            "keys are unique"
        )


def _check_expected(expected: Sequence[tuple[str, int]], found: Iterable[tuple[str, int]]) -> None:
    unknown = sorted(set(found) - set(expected))
    if unknown:
        key, sample = unknown[0]
        raise DataError(f"{len(unknown)} judgements are of no item, the first is sample {sample} of '{key}'")


def mean(values: Iterable[float]) -> float | None:
    """The mean, or None of no values."""
    all_values = [float(value) for value in values]
    return sum(all_values) / len(all_values) if all_values else None


def _whole_record(item: Item) -> Mapping[str, Any]:
    return item.record


def items_digest(items: Iterable[Item], facts: Callable[[Item], Mapping[str, Any]] = _whole_record) -> str:
    """sha256 over everything that decides verdicts, in the items' order: keys, prompts, samples and `Suite.facts`.

    Facts count by value and not by spelling: the order of an object's keys changes nothing.
    """
    digest = hashlib.sha256()
    for item in items:
        digest.update(_canonical(item, facts).encode() + b"\n")
    return digest.hexdigest()


def _canonical(item: Item, facts: Callable[[Item], Mapping[str, Any]]) -> str:
    return json.dumps([item.key, item.prompt, item.samples, facts(item)], sort_keys=True)


def differing(items: Sequence[Item], official: Sequence[Item], facts: Callable[[Item], Mapping[str, Any]]) -> list[str]:
    """The keys of the items that differ from the official item at the same position; `samples` is not compared."""
    changed = []
    for item, theirs in zip(items, official, strict=True):
        if _canonical(item, facts) != _canonical(replace(theirs, samples=item.samples), facts):
            changed.append(item.key)
    return changed


INCOMPLETE = "judgements are missing or could not be read"


def reasons(checks: Mapping[str, bool]) -> tuple[str, ...]:
    """The reasons that hold, in their order: `{"why not": whether it holds}`."""
    return tuple(reason for reason, holds in checks.items() if holds)
