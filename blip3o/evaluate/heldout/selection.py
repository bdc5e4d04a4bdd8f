"""Which held-out samples are drawn and asked about: deterministic, stratified by source, never chosen by result. Pure.

Each source gets its share by weight. Prompts are distinct, because two images with one caption would make retrieval a
guess. Every question is about a different image, and the kinds of question of a source take turns. The samples arrive
in the random order that the caller chose.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any, TypeVar

from PIL import Image

from blip3o.data.text.normalise import normalise
from blip3o.data.text.questions import choices_of, kind_of

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class HeldOutSample:
    """One held-out sample: its source, its caption, its whole record, and its image in RGB."""

    uid: str
    source: str
    caption: str
    record: Mapping[str, Any]
    image: Image.Image


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about an item, with its true answer and its choices (empty: an open question)."""

    item: HeldOutSample
    kind: str
    question: str
    choices: tuple[str, ...]
    answer: str


def shares(weights: Sequence[float], total: int) -> list[int]:
    """`total` split in proportion to weights, by the largest-remainder method."""
    # Round down, then give one more to the largest remainders; ties go to the earlier source.
    exact = [total * weight / sum(weights) for weight in weights]
    whole = [int(value) for value in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (whole[i] - exact[i], i))
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return whole


def distinct_captions(items: Iterable[HeldOutSample], limit: int, *, taken: Iterable[str] = ()) -> list[HeldOutSample]:
    """The first `limit` items whose captions, normalised, differ from each other and from those `taken`.

    Like `pick_questions`, it takes no item that it does not need, because taking one reads it from the store.
    """
    seen = {normalise(caption) for caption in taken}

    def unseen() -> Iterator[HeldOutSample]:
        for item in items:
            caption = normalise(item.caption)
            if caption not in seen:
                seen.add(caption)
                yield item

    return list(islice(unseen(), limit))


def pick_questions(items: Iterable[HeldOutSample], limit: int) -> list[Question]:
    """Up to `limit` questions, one per item: of the kinds in its record, the one that was picked least so far."""
    asked: Counter[str] = Counter()

    def questions() -> Iterator[Question]:
        for item in items:
            pairs = item.record.get("qa") or []
            if pairs:
                pair = min(pairs, key=lambda p: asked[kind_of(p)])
                asked[kind_of(pair)] += 1
                yield _question(item, pair)

    return list(islice(questions(), limit))


def alternate(groups: Sequence[Sequence[T]]) -> list[T]:
    """All members of the groups, interleaved: the first of each group, then the second of each, and so on."""
    turns = zip_longest(*([(member,) for member in group] for group in groups), fillvalue=())
    return [member for turn in turns for members in turn for member in members]


def _question(item: HeldOutSample, pair: Mapping[str, Any]) -> Question:
    return Question(
        item=item,
        kind=kind_of(pair),
        question=str(pair["question"]),
        choices=choices_of(pair),
        answer=str(pair["answer"]),
    )
