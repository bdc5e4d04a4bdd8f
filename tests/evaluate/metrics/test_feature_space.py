"""Own-feature figures at their known points: one picture for every seed, no regard for the prompt, perfect drawings."""

import numpy as np
import pytest

from blip3o.errors import DataError
from blip3o.evaluate.metrics.feature_space import alignment, diversity
from blip3o.rng import numpy_generator


def noise(*shape, name="x"):
    return numpy_generator("test own", name, *shape).normal(size=shape)


def test_one_picture_for_every_seed_is_no_diversity():
    same = np.repeat(noise(6, 1, 4, 8), 3, axis=1)
    figures = diversity(same)
    assert figures["own_diversity"] == pytest.approx(0, abs=1e-9)
    assert figures["own_vendi"] == pytest.approx(1)
    assert (figures["n_prompts"], figures["n_samples"]) == (6, 3)


def test_a_model_that_ignores_its_prompt_has_a_ratio_of_one():
    figures = diversity(noise(30, 4, 64))
    assert figures["own_diversity"] == pytest.approx(1, abs=0.02)
    assert 3.5 < figures["own_vendi"] <= 4


def test_known_distances_and_numbers_of_pictures():
    # Two prompts at distance 10, two drawings each at distance 1, at right angles.
    drawings = np.array([[[0.0, 0.0], [0.0, 1.0]], [[10.0, 0.0], [10.0, 1.0]]])
    figures = diversity(drawings)
    assert (figures["own_within"], figures["own_between"]) == (1.0, 10.0)
    assert figures["own_diversity"] == pytest.approx(0.1)
    orthogonal = np.eye(4).reshape(2, 2, 4)
    assert diversity(orthogonal)["own_vendi"] == pytest.approx(2)


@pytest.mark.parametrize("shape", [(1, 4, 8), (4, 1, 8)])
def test_too_few_drawings_have_no_diversity(shape):
    with pytest.raises(DataError, match="at least 2 of 2"):
        diversity(noise(*shape))


def test_perfect_drawings_and_their_control():
    truth = noise(40, 4, 8)
    figures = alignment(truth, truth, seed=0)
    assert figures["own_cosine"]["value"] == pytest.approx(1)
    assert figures["own_cosine"]["interval"] == pytest.approx([1, 1])
    assert abs(figures["own_cosine"]["shuffled"]) < 0.15
    wilson = pytest.approx([40 / (40 + 1.96**2), 1], abs=1e-4)
    assert figures["own_r1"] == {"value": 1.0, "interval": wilson, "shuffled": 0.0, "chance": 1 / 40}
    assert figures["own_mmd"] < 0  # the two sets share every member, which the unbiased figure takes for too close
    assert figures["n"] == 40


def test_half_of_the_drawings_right_has_a_wide_interval():
    truth = noise(60, 16)
    mixed = np.where(np.arange(60)[:, None] % 2, truth, noise(60, 16, name="other"))
    figures = alignment(mixed, truth, seed=1)
    low, high = figures["own_r1"]["interval"]
    assert low < figures["own_r1"]["value"] < high
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(60), rel=0.15)


def test_the_same_seed_gives_the_same_figures():
    truth = noise(20, 16)
    assert alignment(truth + 0.5 * noise(20, 16, name="e"), truth, seed=3) == alignment(
        truth + 0.5 * noise(20, 16, name="e"), truth, seed=3
    )
