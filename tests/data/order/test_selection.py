"""What a recipe selects: exactly the samples that keep its bounds, worked out once, and part of the order."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from blip3o.config.shards import SelectConfig, SourceConfig
from blip3o.data.order.sample_order import SampleOrder
from blip3o.data.order.selection import (
    ShardChoice,
    is_selected,
    judge_shards,
    read_selection,
    source_rows,
    write_selection,
)
from blip3o.data.shards.fetch import ShardReader, load_samples
from blip3o.data.shards.ledger import Ledger
from blip3o.data.shards.manifest import read_shard_facts
from blip3o.errors import DataError
from blip3o.types import SampleRef
from jobs.index import select_samples
from tests.data.shard_files import UNHURRIED, index, png, sample, tar

SIZES = [(12, 9), (9, 12), (40, 10), (30, 30), (20, 21)]
CAPTIONS = ["a", "a red circle", "one blue square above two green triangles"]
SCORES = [None, 4, 5.0, 7.5, "high", True]
LANGUAGES = ["en", "de", None]


def content(number):
    """Size, caption and record of sample `number`: all combinations come up."""
    record = {"score": SCORES[number % 6], "language": LANGUAGES[number // 6 % 3]}
    known = {name: value for name, value in record.items() if value is not None}
    return SIZES[number % 5], CAPTIONS[number // 5 % 3], known


def files(numbers):
    for number in numbers:
        size, caption, record = content(number)
        yield from sample(
            f"s{number:03d}", image=png(number, size), caption=caption.encode(), record=json.dumps(record).encode()
        )


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Three shards of 30 samples; row 4 of each is damaged."""
    tars = []
    for shard in range(3):
        whole = list(files(range(30 * shard, 30 * shard + 30)))
        whole[3 * 4 + 1] = (whole[3 * 4 + 1][0], b"")
        tars.append(tar(whole))
    return index(tmp_path_factory.mktemp("selection"), tars)


def chosen(manifest, **bounds):
    """(shard, row) of the good samples that a selection keeps."""
    choices = list(judge_shards(manifest, SelectConfig(**bounds)))
    return {
        (shard, row)
        for shard, choice in enumerate(choices)
        for row in range(30)
        if row != 4 and row not in choice.left_out
    }


def keeps(number, bounds):
    """The rule, written a second way."""
    (width, height), caption, record = content(number)
    sides = sorted((width, height))
    checks = [
        sides[0] >= bounds.get("min_side", 0),
        sides[1] / sides[0] <= bounds.get("max_aspect", 1e9),
        bounds.get("min_caption_chars", 0) <= len(caption) <= bounds.get("max_caption_chars", 1e9),
    ]
    for name, rule in bounds.get("where", {}).items():
        value = record.get(name)
        number_like = type(value) in (int, float)
        checks.append(name in record)
        checks.append("min" not in rule or (number_like and value >= rule["min"]))
        checks.append("max" not in rule or (number_like and value <= rule["max"]))
        checks.append("in" not in rule or any(value == it and type(value) is type(it) for it in rule["in"]))
    return all(checks)


rules = st.one_of(
    st.fixed_dictionaries({}, optional={"min": st.sampled_from([4.0, 5.0]), "max": st.sampled_from([5.0, 7.5])}).filter(
        bool
    ),
    st.fixed_dictionaries({"in": st.lists(st.sampled_from([5.0, "high", True, "en", "de"]), min_size=1, max_size=3)}),
)
bounds = st.fixed_dictionaries(
    {},
    optional={
        "min_side": st.sampled_from([9, 10, 20]),
        "max_aspect": st.sampled_from([1.0, 1.05, 4 / 3, 4.0]),
        "min_caption_chars": st.sampled_from([1, 2, 12]),
        "max_caption_chars": st.sampled_from([12, 13, 100]),
        "where": st.dictionaries(st.sampled_from(["score", "language"]), rules, max_size=2),
    },
)


@given(bounds=bounds)
@settings(UNHURRIED, max_examples=40)
def test_what_keeps_the_bounds_is_selected_and_nothing_else(manifest, bounds):
    expected = {divmod(n, 30) for n in range(90) if n % 30 != 4 and keeps(n, bounds)}
    assert chosen(manifest, **bounds) == expected


def test_a_selection_is_worked_out_once_for_a_manifest(manifest, caplog):
    select = SelectConfig(min_side=20, where={"language": {"in": ["en"]}})
    source = SourceConfig(name="src", shards="*", select=select)
    assert not is_selected(manifest, select)
    with pytest.raises(
        DataError, match=r"selections/\w+\.parquet is not there, or of an older manifest: run `python -m"
    ):
        source_rows([source], [manifest])
    with caplog.at_level("INFO"):
        select_samples([source], [manifest])
        select_samples([source], [manifest])
    kept = chosen(manifest, **select.model_dump())
    said = [record.getMessage() for record in caplog.records if not record.getMessage().startswith("select src: ")]
    assert said == [f"src: {len(kept)} of 87 good samples selected"]
    [rows] = source_rows([source], [manifest])
    assert {(shard, row) for shard in range(3) for row in rows.good_rows(shard).tolist()} == kept
    assert len(rows) == len(kept)
    # Of a manifest that has changed, it is another selection.
    changed = replace(manifest, shards=(replace(manifest.shards[0], bad_rows=(4, 5)), *manifest.shards[1:]))
    assert not is_selected(changed, select)
    # So it is where a shard of the same size and rows was written again: its records may say something else.
    rewritten = replace(manifest, shards=(replace(manifest.shards[0], version="later"), *manifest.shards[1:]))
    assert not is_selected(rewritten, select)
    assert is_selected(manifest, SelectConfig(**json.loads(select.model_dump_json())))


def test_the_order_and_its_fingerprint_follow_the_selection(manifest):
    orders = {}
    for side in (None, 1, 20):
        select = SelectConfig(min_side=side)
        source = SourceConfig(name="src", shards="*", select=select)
        select_samples([source], [manifest])
        rows = source_rows([source], [manifest])
        orders[side] = SampleOrder(rows, weights=[1], seed=0, micro_batch=1, chunk=4, window=2)
    # One that leaves nothing out is the order of all.
    assert orders[None].fingerprint() == orders[1].fingerprint() != orders[20].fingerprint()
    kept = chosen(manifest, min_side=20)
    for number in range(2):
        seen = orders[20].refs(number * len(kept), len(kept))
        assert {(ref.shard, ref.row) for ref in seen} == kept
        assert {ref.pass_index for ref in seen} == {number}


def test_what_was_not_selected_replaces_nothing(manifest, tmp_path):
    select = SelectConfig(min_side=20)
    source = SourceConfig(name="src", shards="*", select=select)
    select_samples([source], [manifest])
    reader = ShardReader([manifest], sources=source_rows([source], [manifest]))
    refused = SampleRef(source=0, shard=1, row=3, pass_index=0)

    def validate(raw):
        if raw.uid == "src/1/3":
            raise DataError("refused")
        return raw.uid

    [uid] = load_samples([refused], reader, validate, Ledger(str(tmp_path)))
    shard, row = map(int, uid.split("/")[1:])
    assert (shard, row) in chosen(manifest, min_side=20) - {(1, 3)}


def test_what_cannot_be_meant_is_named(manifest):
    choices = list(judge_shards(manifest, SelectConfig(min_side=10_000)))
    with pytest.raises(DataError, match="source 'src': select leaves none of 87 good samples: loosen it"):
        write_selection(manifest, SelectConfig(min_side=10_000), choices)
    for rule in ({"min": 1.0}, {"in": ["en"]}):
        select = SelectConfig(where={"langauge": rule})
        with pytest.raises(DataError, match="no sample's record has a value 'langauge', which .* have language, score"):
            write_selection(manifest, select, list(judge_shards(manifest, select)))
    with pytest.raises(DataError, match="'language' is a number in no record: select.where can only use `in`"):
        select = SelectConfig(where={"language": {"max": 1.0}})
        write_selection(manifest, select, list(judge_shards(manifest, select)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_caption_chars": 9, "max_caption_chars": 8}, "min_caption_chars 9 is above max_caption_chars 8"),
        ({"where": {"score": {}}}, "'score' has no rule: give min, max or in"),
        ({"where": {"score": {"min": [1]}}}, "min and max of 'score' are single numbers"),
        ({"where": {"score": {"in": 1}}}, "in of 'score' is a list of the accepted values"),
        ({"where": {"score": {"in": []}}}, "in of 'score' is a list of the accepted values, with at least one"),
        ({"where": {"score": {"above": 1}}}, "'min', 'max' or 'in'"),
        ({"max_aspect": 0.5}, "greater than or equal to 1"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        SelectConfig(**values)


def test_choices_are_read_back_as_they_were_stored(tmp_path, manifest):
    """Shards with nothing left out, all but one, and all."""
    shards = [replace(manifest.shards[0], shard=n, rows=100, bad_rows=()) for n in range(30)]
    many = replace(manifest, uri=str(tmp_path), shards=tuple(shards))
    left_out = [np.arange(0 if n % 3 == 0 else 99 if n % 3 == 1 else 100, dtype=np.int32) for n in range(30)]
    choices = [ShardChoice(left_out=rows, known=frozenset(), judged=frozenset()) for rows in left_out]
    select = SelectConfig(min_side=3)
    assert write_selection(many, select, choices) == 10 * 100 + 10
    assert all(np.array_equal(*pair) for pair in zip(read_selection(many, select), left_out, strict=True))
    assert len(read_shard_facts(manifest, 0)) == 30
