"""Which good rows of a source a recipe leaves out: computed once from the index files, stored next to the manifest.

A selection is a function of manifest and bounds. It is a file of its own, named after the bounds, so that the order
needs only the rows, and many recipes can choose differently from one indexed source.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from blip3o import storage
from blip3o.config.shards import Rule, SelectConfig, SourceConfig
from blip3o.data.order.sample_order import SourceRows
from blip3o.data.shards.manifest import Manifest, read_shard_facts, read_table, write_table
from blip3o.errors import DataError

THREADS = 16
_SCHEMA = pa.schema([("shard", pa.int32()), ("left_out", pa.list_(pa.int32()))])


@dataclass(frozen=True, kw_only=True)
class ShardChoice:
    """One shard's good rows that are `left_out` (int32, sorted), and the names of record values that were met there:
    all of them (`known`), and those of rules with a value that the rule can judge (`judged`).
    """

    left_out: np.ndarray
    known: frozenset[str]
    judged: frozenset[str]


def selection_file(manifest: Manifest, select: SelectConfig) -> str:
    """Where the rows that these bounds leave out are, or will be."""
    bounds = select.model_dump_json(exclude_defaults=True)
    name = hashlib.sha256(bounds.encode()).hexdigest()[:24]
    return storage.join(manifest.uri, "selections", f"{name}.parquet")


def is_selected(manifest: Manifest, select: SelectConfig) -> bool:
    """Whether the selection has been computed for the manifest as it is now."""
    return _stored(manifest, select, columns=[]) is not None


def judge_shards(manifest: Manifest, select: SelectConfig) -> Iterator[ShardChoice]:
    """The choice in every shard, in their order, from index files only. Raises `DataError` where one is missing."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(partial(_judge_shard, manifest, select), range(len(manifest.shards)))


def write_selection(manifest: Manifest, select: SelectConfig, choices: Sequence[ShardChoice]) -> int:
    """Stores the choices of all shards and returns how many samples are left.

    Raises `DataError` if none is, or if no sample has a value that a rule names: a misspelt name would leave out all.
    """
    _require_judged(manifest.name, select, choices)
    left = manifest.good_rows - sum(len(choice.left_out) for choice in choices)
    if not left:
        raise DataError(f"source '{manifest.name}': select leaves none of {manifest.good_rows} good samples: loosen it")
    rows = {"shard": range(len(choices)), "left_out": [choice.left_out for choice in choices]}
    header = {"manifest": _made_of(manifest), "select": select.model_dump(mode="json", exclude_defaults=True)}
    write_table(selection_file(manifest, select), pa.table(rows, schema=_SCHEMA), header)
    return left


def read_selection(manifest: Manifest, select: SelectConfig) -> list[np.ndarray]:
    """Per shard the good rows that are left out, int32, sorted; no rows where nothing is to be left out.

    Raises `DataError` if the selection has not been computed for this manifest.
    """
    if select.empty:
        return [np.empty(0, np.int32)] * len(manifest.shards)
    table = _stored(manifest, select, columns=["left_out"])
    if table is None:
        file = selection_file(manifest, select)
        raise DataError(f"{file} is not there, or of an older manifest: run `python -m jobs.index RECIPE`")
    left_out = table.column("left_out").combine_chunks()
    ends = left_out.offsets.to_numpy()
    return np.split(left_out.values.to_numpy(), ends[1:-1])


def source_rows(sources: Sequence[SourceConfig], manifests: Sequence[Manifest]) -> list[SourceRows]:
    """The rows of each source that its manifest calls good and its selection does not leave out.

    Raises `DataError` if a selection has not been computed.
    """
    return [
        SourceRows.from_manifest(source.name, manifest, read_selection(manifest, source.select))
        for source, manifest in zip(sources, manifests, strict=True)
    ]


def _stored(manifest: Manifest, select: SelectConfig, *, columns: list[str]) -> pa.Table | None:
    """Columns of the stored selection, None where there is none for the manifest as it is now."""
    file = selection_file(manifest, select)
    if not storage.exists(file):
        return None
    table, header = read_table(file, columns=columns)
    return table if header.get("manifest") == _made_of(manifest) else None


def _made_of(manifest: Manifest) -> str:
    """sha256 over the shards as they were indexed. Their versions count: a score that was corrected in place changes
    neither the size of a tar nor its rows.
    """
    versions = json.dumps([manifest.fingerprint, *(shard.version for shard in manifest.shards)])
    return hashlib.sha256(versions.encode()).hexdigest()


def _judge_shard(manifest: Manifest, select: SelectConfig, shard: int) -> ShardChoice:
    facts = read_shard_facts(manifest, shard)
    good = np.ones(len(facts), bool)
    good[list(manifest.shards[shard].bad_rows)] = False
    kept = _kept_by_numbers(facts, select)
    known: set[str] = set()
    judged: set[str] = set()
    if select.where:
        for row in np.flatnonzero(good):
            fields = json.loads(facts.column("fields")[int(row)].as_py())
            known |= fields.keys()
            able = {name for name, rule in select.where.items() if name in fields and _can_judge(rule, fields[name])}
            judged |= able
            kept[row] &= all(name in able and _keeps(rule, fields[name]) for name, rule in select.where.items())
    left_out = np.flatnonzero(good & ~kept).astype(np.int32)
    return ShardChoice(left_out=left_out, known=frozenset(known), judged=frozenset(judged))


def _kept_by_numbers(facts: pa.Table, select: SelectConfig) -> np.ndarray:
    """Which rows keep the bounds on sides and caption, bool [N]."""
    width, height, chars = (facts.column(name).to_numpy() for name in ("width", "height", "caption_chars"))
    short, long = np.minimum(width, height), np.maximum(width, height)
    kept = np.ones(len(facts), bool)
    if select.min_side is not None:
        kept &= short >= select.min_side
    if select.max_aspect is not None:
        kept &= long <= select.max_aspect * short
    if select.min_caption_chars is not None:
        kept &= chars >= select.min_caption_chars
    if select.max_caption_chars is not None:
        kept &= chars <= select.max_caption_chars
    return kept


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _can_judge(rule: Rule, value: object) -> bool:
    return _is_number(value) or not {"min", "max"} & rule.keys()


def _keeps(rule: Rule, value: Any) -> bool:  # noqa: ANN401 - a JSON value that the rule can judge
    accepted = rule.get("in")
    # JSON's true is no number, though Python counts it as 1.
    named = not isinstance(accepted, tuple) or any(
        isinstance(value, bool) == isinstance(it, bool) and value == it for it in accepted
    )
    low, high = rule.get("min"), rule.get("max")
    return named and (low is None or value >= low) and (high is None or value <= high)


def _require_judged(source: str, select: SelectConfig, choices: Sequence[ShardChoice]) -> None:
    judged = frozenset[str]().union(*(choice.judged for choice in choices))
    for name in select.where:
        if name not in judged:
            known = sorted(frozenset[str]().union(*(choice.known for choice in choices)))
            if name in known:
                raise DataError(f"source '{source}': '{name}' is a number in no record: select.where can only use `in`")
            raise DataError(
                f"source '{source}': no sample's record has a value '{name}', which select.where names; the records "
                f"have {', '.join(known) or 'no values'}"
            )
