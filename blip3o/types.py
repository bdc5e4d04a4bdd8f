"""Small frozen values that layers exchange.

Elsewhere: configuration (blip3o.config), batches (plain dictionaries of NumPy arrays), anything that does I/O.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRef:
    """One slot of the order: which sample, in which pass over its source.

    `source` is an index into the recipe's sources, `shard` into the source's shards, `row` into the shard's samples;
    `pass_index` numbers the passes over the source. All start at 0.
    """

    source: int
    shard: int
    row: int
    pass_index: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file inside a tar: `ext` is its name after the first dot, in lower case; `offset` and `size` are bytes."""

    ext: str
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RawSample:
    """A sample as stored: encoded `image`, `caption`, and `meta` (KEY.json, or empty).

    `uid` names the content permanently, `key` is its name in the tar. `pass_index` is that of the slot it fills, so
    that random draws for (uid, pass_index) differ between passes.
    """

    uid: str
    key: str
    pass_index: int
    image: bytes
    caption: str
    meta: dict[str, Any]


def sample_uid(source: str, shard: int, row: int) -> str:
    """The name of a sample: `source/shard/row`. Stable as long as shards are only appended to a source."""
    return f"{source}/{shard}/{row}"
