"""Retrieval figures at their known points: perfect features, noise, ties, and the control."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3o.errors import DataError
from blip3o.evaluate.metrics.feature_space import alignment
from blip3o.evaluate.metrics.retrieval import derangement, recall, score, similarity
from blip3o.rng import numpy_generator


def features(n, name="truth"):
    return numpy_generator("test", name, n).normal(size=(n, 4, 8)).astype(np.float32)


def test_perfect_features_find_their_image_and_the_control_does_not():
    truth = features(40)
    scores = score(truth, truth, ["a"] * 40, seed=0)
    assert (scores["r1"], scores["r5"]) == (1.0, 1.0)
    assert scores["shuffled_r1"] == 0.0
    assert (scores["chance_r1"], scores["chance_r5"], scores["n"]) == (1 / 40, 5 / 40, 40)


def test_neither_scale_nor_a_common_offset_of_the_space_matters():
    truth = features(30)
    assert np.allclose(similarity(truth * 7 + 3, truth * 7 + 3), similarity(truth, truth), atol=1e-6)


def test_features_without_relation_to_the_captions_score_chance():
    rates = [score(features(50, f"noise{i}"), features(50), ["a"] * 50, seed=i)["r1"] for i in range(40)]
    # 2000 guesses at 1/50: standard deviation 0.003.
    assert np.mean(rates) == pytest.approx(1 / 50, abs=0.01)


def test_equal_features_score_exactly_chance_not_one():
    truth = np.broadcast_to(features(1), (10, 4, 8))
    cosines = similarity(truth, truth)
    assert recall(cosines, 1) == pytest.approx(1 / 10)
    assert recall(cosines, 5) == pytest.approx(5 / 10)


def test_a_tie_for_the_first_place_is_shared():
    cosines = np.array([[0.9, 0.9, 0.1], [0.2, 0.8, 0.1], [0.9, 0.8, 0.7]])
    assert recall(cosines, 1) == pytest.approx((0.5 + 1 + 0) / 3)
    assert recall(cosines, 2) == pytest.approx((1 + 1 + 0) / 3)


@given(st.integers(2, 60), st.integers(0, 5))
def test_a_derangement_moves_every_item(n, seed):
    permutation = derangement(n, numpy_generator(seed))
    assert sorted(permutation) == list(range(n))
    assert not (permutation == np.arange(n)).any()


def test_one_item_cannot_be_exchanged():
    with pytest.raises(DataError, match="at least 2"):
        derangement(1, numpy_generator(0))


def test_sources_are_scored_among_themselves():
    truth = features(12)
    generated = truth.copy()
    generated[:6] = truth[[1, 2, 3, 4, 5, 0]]  # source "a" draws the wrong image throughout
    scores = score(generated, truth, ["a"] * 6 + ["b"] * 6, seed=0)
    assert scores["r1"] == 0.5
    assert scores["by_source"]["a"]["r1"] == 0.0
    assert scores["by_source"]["b"]["r1"] == 1.0
    assert scores["by_source"]["b"]["chance_r1"] == 1 / 6


def test_what_any_drawing_would_reach_is_no_figure():
    """R@5 of five images is 1 whatever is drawn, and so is R@1 of one."""
    truth = features(6)
    scores = score(truth, truth, ["a"] * 5 + ["b"], seed=0)
    assert (scores["r5"], scores["chance_r5"]) == (1.0, 5 / 6)
    of_five, of_one = scores["by_source"]["a"], scores["by_source"]["b"]
    assert (of_five["r1"], of_five["r5"], of_five["chance_r5"], of_five["shuffled_r5"]) == (1.0, None, None, None)
    assert (of_one.pop("n"), set(of_one.values())) == (1, {None})
    own = alignment(truth[:5], truth[:5], seed=0)
    assert (own["own_r1"]["value"], set(own["own_r5"].values())) == (1.0, {None})
    with pytest.raises(DataError, match="1 held-out items: retrieval needs at least 2"):
        score(truth[:1], truth[:1], ["a"], seed=0)
