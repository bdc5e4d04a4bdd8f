"""The records that every benchmark exchanges: items, judgements, the judge, coverage and the score. Pure data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Item:
    """One prompt or question of a suite; the target makes `samples` images or replies for it.

    `key` is unique within the suite and part of file names. `record` is the benchmark's own row.
    """

    key: str
    prompt: str
    record: Mapping[str, Any]
    samples: int


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a judge found in sample number `sample` of item `key`.

    `value` is None where the judge failed or its reply was unreadable; `fault` then says why ("" otherwise). `reply` is
    the verbatim reply of a judge that answers in words. `sources` maps the URI of every other file that the judgement
    depends on (for example a reference image) to its sha256.
    """

    key: str
    sample: int
    value: Mapping[str, Any] | None
    fault: str = ""
    reply: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many judgements a score should rest on (`n_expected`), and what became of them."""

    n_expected: int
    n_scored: int
    n_missing: int
    n_parse_failed: int

    @property
    def complete(self) -> bool:
        """Whether every expected judgement exists and was scored."""
        return self.n_scored == self.n_expected > 0


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Who judged: a name such as `mask2former-swin-s+clip-vit-l-14`, and the version of its weights or program.

    `source` is the sha256 of the file that its judgements were imported from ("" where the judge was called directly).
    Judgements from two sources are never mixed, even though both may come from the same judge.
    """

    id: str
    version: str
    source: str = ""

    def same(self, other: "Judge") -> bool:
        """Whether both are the same judge, wherever their judgements come from."""
        return replace(self, source="") == replace(other, source="")


@dataclass(frozen=True, kw_only=True)
class Score:
    """The result of a suite with everything it rests on. `overall` is None where the coverage is incomplete.

    `categories` are the benchmark's own parts (None: nothing in that part was scored) and `details` further figures.
    `interval` is the 95 % interval of the overall over items (see `blip3o.evaluate.metrics.intervals.bootstrap`).
    `best` is the highest possible overall, or None where there is no upper limit and lower is better.
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
