"""Distances of feature sets against independent formulas, and sums of parts against the whole."""

import numpy as np
import pytest

from blip3o.errors import DataError
from blip3o.evaluate.metrics.distribution_distance import (
    Moments,
    frechet_distance,
    frechet_name,
    merged,
    mmd,
    mmd_of_pairs,
)
from blip3o.rng import numpy_generator


def features(n, d=4, name="a", shift=0.0, scale=1.0):
    generator = numpy_generator("test moments", name, n, d)
    mixing = generator.normal(size=(d, d))
    return generator.normal(size=(n, d)) @ mixing * scale + shift


def test_parts_add_up_to_the_whole():
    x = features(101)
    whole, parts = Moments.of(x), merged(Moments.of(part) for part in np.array_split(x, 7))
    assert parts.n == 101
    for name in ("total", "outer", "square", "fourth"):
        assert np.allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12)
    other = Moments.of(features(90, name="b"))
    assert frechet_distance(parts, other) == pytest.approx(frechet_distance(whole, other), rel=1e-10)
    assert mmd(parts, other) == pytest.approx(mmd(whole, other), rel=1e-10)


def test_moments_are_numpy_s():
    x = features(50)
    assert np.allclose(Moments.of(x).mean, x.mean(axis=0))
    assert np.allclose(Moments.of(x).covariance, np.cov(x, rowvar=False))


def newton_root(matrix):
    """The square root of a matrix by Denman and Beavers' iteration: another way than eigenvalues."""
    y, z = matrix, np.eye(len(matrix))
    for _ in range(50):
        y, z = (y + np.linalg.inv(z)) / 2, (z + np.linalg.inv(y)) / 2
    return y


def test_the_frechet_distance_is_that_of_the_formula():
    x, y = features(200, name="x"), features(300, name="y", shift=0.5, scale=1.3)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    offset = x.mean(axis=0) - y.mean(axis=0)
    expected = offset @ offset + np.trace(a + b - 2 * newton_root(a @ b))
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-9)


def test_known_distances():
    x = features(100)
    assert frechet_distance(Moments.of(x), Moments.of(x)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(Moments.of(x), Moments.of(x + 3)) == pytest.approx(4 * 9)
    # Covariance C against 4 C: tr(C + 4 C - 2 * 2 C) = tr C.
    centred = x - x.mean(axis=0)
    expected = np.trace(np.cov(x, rowvar=False))
    assert frechet_distance(Moments.of(centred), Moments.of(2 * centred)) == pytest.approx(expected)


def pairwise_mmd(x, y):
    def kernel(a, b):
        return (a @ b.T / x.shape[1] + 1) ** 2

    within = [(kernel(z, z).sum() - np.trace(kernel(z, z))) / (len(z) * (len(z) - 1)) for z in (x, y)]
    return sum(within) - 2 * kernel(x, y).mean()


def test_the_discrepancy_is_that_of_all_pairs():
    x, y = features(40, name="x"), features(60, name="y", shift=0.3)
    assert mmd(Moments.of(x), Moments.of(y)) == pytest.approx(pairwise_mmd(x, y), rel=1e-9)
    assert mmd_of_pairs(x, y) == pytest.approx(pairwise_mmd(x, y), rel=1e-9)


def test_the_discrepancy_has_no_bias_and_sees_a_difference():
    generator = numpy_generator("test mmd")
    draws = generator.normal(size=(300, 2, 10, 3))
    values = [mmd(Moments.of(x), Moments.of(y)) for x, y in draws]
    # 0 within the error of the mean of 300; with the bias (about 0.6 at n = 10) it would be far off.
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)
    assert np.std(values) / np.sqrt(300) < 0.03
    x = generator.normal(size=(500, 3))
    assert mmd(Moments.of(x), Moments.of(x[::-1] + 1)) > 0.2


def test_too_few_pictures_have_no_distance():
    few, many = Moments.of(features(39)), Moments.of(features(40, name="b"))
    with pytest.raises(DataError, match="39 and 40 pictures for 4 feature dimensions: .* takes 40"):
        frechet_distance(few, many)
    assert frechet_distance(many, many) == pytest.approx(0, abs=1e-9)
    with pytest.raises(DataError, match="at least 2"):
        mmd(Moments.of(features(1)), many)


@pytest.mark.parametrize(
    ("bad", "message"), [(np.zeros((3, 2, 2)), "one vector"), (np.full((2, 3), np.nan), "2 pictures are not finite")]
)
def test_other_features_are_refused(bad, message):
    with pytest.raises(DataError, match=message):
        Moments.of(bad)


def test_features_of_two_networks_and_of_none_are_refused():
    with pytest.raises(DataError, match="not of one network"):
        frechet_distance(Moments.of(features(50)), Moments.of(features(50, d=3)))
    with pytest.raises(DataError, match="no features"):
        merged([])


def test_only_the_official_weights_make_it_fid():
    assert frechet_name("clip", "0" * 64) == "frechet_clip"
    assert frechet_name("inception", "6726825d" + "0" * 56) == "fid"
