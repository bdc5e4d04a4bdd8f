"""Which samples of an import are held out: a share of all pictures, or of all captions, chosen by hashes.

The choice depends on the samples only, not on their order, and a sample keeps its side when others are added. Grouped
by caption, samples that share a caption are on one side; samples with several captions join all who share one of them,
so there a new sample may join two groups, one of which then changes its side.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from blip3o.data.text.normalise import normalise
from blip3o.rng import derive_seed

GroupBy = Literal["picture", "caption"]
Side = Literal["train", "heldout"]


@dataclass(frozen=True, kw_only=True)
class Split:
    """A share `heldout` of names (of pictures) is held out; or of groups of captions, if there are `groups`."""

    heldout: float = 0.0
    groups: "CaptionGroups | None" = None

    def side(self, name: str, captions: Sequence[str]) -> Side:
        """The side of a sample."""
        key = ("import", "split", name) if self.groups is None else ("import", "caption", self.groups.of(captions[0]))
        return "heldout" if derive_seed(*key) < self.heldout * 2**63 else "train"


class CaptionGroups:
    """Captions that occur together in a sample, directly or through others, are one group."""

    def __init__(self, samples: Iterable[Sequence[str]]) -> None:
        self._above: dict[str, str] = {}
        for captions in samples:
            first, *others = map(normalise, captions)
            for other in others:
                self._join(first, other)

    def of(self, caption: str) -> str:
        """The name of a caption's group: its first caption in the order of the alphabet."""
        return self._top(normalise(caption))

    def _join(self, one: str, other: str) -> None:
        low, high = sorted((self._top(one), self._top(other)))
        if low != high:
            self._above[high] = low

    def _top(self, caption: str) -> str:
        path = [caption]
        while path[-1] in self._above:
            path.append(self._above[path[-1]])
        for passed in path[:-1]:  # the next search is short
            self._above[passed] = path[-1]
        return path[-1]


@dataclass
class SharedCaptions:
    """Counts the captions that are on both sides of a split."""

    sides: dict[Side, set[str]] = field(default_factory=lambda: {"train": set(), "heldout": set()})

    def add(self, side: Side, captions: Iterable[str]) -> None:
        """Takes the captions of a sample."""
        self.sides[side].update(map(normalise, captions))

    def note(self) -> str | None:
        """What a user should know, in a line; None if no caption is on both sides."""
        held_out = self.sides["heldout"]
        shared = len(held_out & self.sides["train"])
        if not shared:
            return None
        return (
            f"{shared} of {len(held_out)} held-out captions are training captions as well: --group-by caption keeps "
            "equal captions on one side"
        )
