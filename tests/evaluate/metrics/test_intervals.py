"""Intervals of shares: Wilson's at the edges, where a bootstrap knows no doubt."""

import math

import pytest

from blip3o.evaluate.metrics import feature_space as own
from blip3o.evaluate.metrics import understanding
from blip3o.evaluate.metrics.intervals import bootstrap, wilson, wilson_at_the_edges
from blip3o.rng import numpy_generator

Z2 = 1.959963984540054**2


@pytest.mark.parametrize("n", [1, 3, 12, 240, 2212, 30_000])
def test_all_right_and_all_wrong_have_the_closed_form(n):
    assert wilson(1.0, n) == (pytest.approx(n / (n + Z2)), 1.0)
    assert wilson(0.0, n) == (0.0, pytest.approx(Z2 / (n + Z2)))


@pytest.mark.parametrize(("right", "n"), [(1, 10), (5, 10), (239, 240), (120, 240), (1, 553)])
def test_the_ends_are_the_shares_of_which_the_score_test_would_just_hold(right, n):
    """Wilson's interval by its definition: |p̂ − p| = z √(p (1 − p) / n) at both ends."""
    share = right / n
    for end in wilson(share, n):
        assert abs(share - end) == pytest.approx(math.sqrt(Z2 * end * (1 - end) / n))


def test_240_of_240_is_not_certain():
    low, high = bootstrap([[1.0] * 40] * 6, "scenes")
    assert (low, high) == (pytest.approx(240 / (240 + Z2)), 1.0) and low < 0.985
    assert bootstrap([[0.0] * 240], "scenes") == (0.0, pytest.approx(Z2 / (240 + Z2)))
    assert bootstrap([[100.0] * 240], "dpg", best=100.0) == (pytest.approx(100 * 240 / (240 + Z2)), 100.0)


@pytest.mark.parametrize("wrong", [1, 2])
def test_nearly_all_right_leaves_the_edge_open_too(wrong):
    low, high = bootstrap([[0.0] * wrong + [1.0] * (240 - wrong)], "scenes")
    assert low < 1 - wrong / 240 < high < 1
    assert (low, high) == pytest.approx(wilson(1 - wrong / 240, 240))


def test_groups_of_other_sizes_count_by_the_variance_of_their_mean():
    sizes = (80, 99, 80, 94, 100, 100)
    low, high = bootstrap([[1.0] * size for size in sizes], "geneval")
    effective = 36 / sum(1 / size for size in sizes)
    assert (low, high) == (pytest.approx(effective / (effective + Z2)), 1.0)
    assert effective < sum(sizes)


def test_in_the_middle_the_bootstrap_stays():
    assert wilson_at_the_edges((0.2, 0.4), 0.3, [10]) == (0.2, 0.4)
    low, high = bootstrap([[0.0, 1.0] * 200], "test")
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.15)
    assert bootstrap([[0.25] * 8], "test") == (0.25, 0.25), "a mean of values that are all alike is no share"


def test_one_of_one_says_next_to_nothing():
    assert bootstrap([[1.0]], "test") == (pytest.approx(1 / (1 + Z2)), 1.0)


def test_the_other_reports_of_shares_have_it_too():
    record = understanding.AnswerRecord(
        uid="1", source="s", kind="k", question="q", choices=("a", "b", "c"), answer="a", reply="a"
    )
    assert understanding.score([record] * 50, seed=0)["interval"] == pytest.approx([50 / (50 + Z2), 1.0])
    features = numpy_generator("test intervals").normal(size=(40, 8))
    figures = own.alignment(features, features, seed=0)
    assert figures["own_r1"]["interval"] == pytest.approx([40 / (40 + Z2), 1.0])
