"""What every suite leans on: seeds, coverage, and intervals."""

import hashlib

import numpy as np
import pytest

from blip3o.errors import DataError
from blip3o.evaluate.metrics.intervals import bootstrap
from blip3o.evaluate.records import Item, Judge, Judgement
from blip3o.evaluate.suites.suite import collect_values, item_seed, items_digest, mean
from serve.http.forms.images import MAX_SEED


def items(*keys, samples=2):
    return [Item(key=key, prompt=f"a {key}", record={}, samples=samples) for key in keys]


def judged(key, sample, value=1.0):
    return Judgement(key=key, sample=sample, value={"x": value})


def test_a_seed_is_a_function_of_its_names_and_fits_the_images_api():
    seeds = {item_seed(suite, key, n) for suite in ("a", "b") for key in ("1", "2", "1\n1") for n in range(3)}
    assert len(seeds) == 18
    assert max(seeds) <= MAX_SEED
    # Stated, since images that were drawn last year must be found again.
    digest = hashlib.sha256(b"geneval\n00000\n3").hexdigest()
    assert item_seed("geneval", "00000", 3) == int(digest[:13], 16)


def test_coverage_tells_missing_from_unreadable():
    failed = Judgement(key="a", sample=1, value=None, fault="no JSON in 'maybe'")
    values, coverage = collect_values(items("a", "b"), [judged("b", 0), failed, judged("a", 0)])
    assert list(values) == [("a", 0), ("b", 0)]
    assert (coverage.n_expected, coverage.n_scored, coverage.n_missing, coverage.n_parse_failed) == (4, 2, 1, 1)
    assert not coverage.complete
    assert collect_values(items("a"), [judged("a", 0), judged("a", 1)])[1].complete


def test_no_items_are_not_complete():
    assert not collect_values([], [])[1].complete


@pytest.mark.parametrize(
    ("keys", "judgements", "message"),
    [
        (["a"], [judged("a", 0), judged("a", 0)], "two judgements on sample 0 of 'a'"),
        (["a"], [judged("c", 0)], "of no item"),
        (["a"], [judged("a", 2)], "sample 2 of 'a'"),
        (["a", "a"], [], "share their key"),
        (["../a"], [], "'../a' is no key, since files are named by it"),
        (["/a"], [], "'/a' is no key"),
    ],
)
def test_findings_that_do_not_fit_the_items_are_refused(keys, judgements, message):
    with pytest.raises(DataError, match=message):
        collect_values(items(*keys), judgements)


def test_the_interval_covers_the_mean_of_group_means_and_needs_every_group():
    groups = [[0.0, 1.0] * 50, [1.0] * 10]
    low, high = bootstrap(groups, "test")
    assert low < 0.75 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(100) / 2, rel=0.15)
    assert bootstrap([[1.0], []], "test") is None
    assert bootstrap([], "test") is None


def test_the_digest_depends_on_order_and_on_where_words_end():
    assert items_digest(items("a", "b")) != items_digest(items("b", "a"))
    assert items_digest(items("ab")) != items_digest(items("a", "b"))


def test_the_digest_covers_every_field_that_decides_and_not_how_it_is_written():
    def digest(record, samples=2):
        return items_digest([Item(key="a", prompt="p", record=record, samples=samples)])

    base = {"include": [{"class": "dog", "count": 1}], "tag": "counting"}
    others = [
        {**base, "tag": "colors"},
        {**base, "include": []},
        {**base, "include": [{"class": "dog", "count": 2}]},
        {**base, "include": [{"class": "dog", "count": 1, "color": "red"}]},
        {**base, "include": [{"class": "dog", "count": "1"}]},
        {**base, "include": [{"class": "dog", "count": True}]},
        {**base, "exclude": []},
    ]
    sums = [digest(base), *map(digest, others), digest(base, samples=3)]
    assert len(set(sums)) == len(sums)
    turned = {"tag": "counting", "include": [{"count": 1, "class": "dog"}]}
    assert digest(turned) == digest(base)


@pytest.mark.parametrize("key", ["a\0", "a\nb", "\ud800"])
def test_keys_that_no_file_can_have_are_refused(key):
    with pytest.raises(DataError, match="remove it"):
        collect_values(items(key), [])


def test_a_judge_is_one_whatever_file_its_findings_come_from():
    official = Judge(id="a", version="1")
    assert Judge(id="a", version="1", source="sha256 0").same(official)
    assert not Judge(id="a", version="2").same(official) and not Judge(id="b", version="1").same(official)


def test_nothing_has_no_mean():
    assert mean([]) is None
    assert mean([True, False]) == 0.5
