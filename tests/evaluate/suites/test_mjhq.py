"""MJHQ: its file, its layout, and a distance under its honest name."""

import json

import pytest

from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.records import Judge, Judgement
from blip3o.evaluate.suites.mjhq import Mjhq
from blip3o.rng import numpy_generator

MJHQ = Mjhq()
OWN = Judge(id="own-encoder", version="abc")
INCEPTION = Judge(id="inception-v3", version="6726825d… 256 bicubic antialiased, centre crop 256, uint8")


@pytest.fixture
def items(tmp_path):
    file = tmp_path / "meta_data.json"
    file.write_text(json.dumps({f"k{n}": {"category": "animals", "prompt": f"p{n}"} for n in range(40)}))
    return MJHQ.items(str(file))


def judged(items, shift):
    vectors = numpy_generator("test mjhq").normal(size=(len(items), 2))
    return [
        Judgement(key=item.key, sample=0, value={"generated": list(x + shift), "reference": list(x)})
        for item, x in zip(items, vectors, strict=True)
    ]


def test_the_distance_is_named_by_its_network(items):
    score = MJHQ.score(items, judged(items, 2.0), OWN)
    assert score.overall == score.details["frechet_own-encoder"] == pytest.approx(2 * 4)
    assert "fid" not in score.details
    assert score.details["mmd_own-encoder"] > 0
    assert (score.best, score.details["n"], score.comparable) == (None, 40, False)
    assert "frechet_own-encoder is not FID: the network's weights are not the official Inception's" in score.why_not
    assert MJHQ.score(items, judged(items, 2.0), INCEPTION).details["fid"] == pytest.approx(8)


def test_an_incomplete_set_has_no_distance(items):
    for found in (judged(items, 0.0)[:-1], []):
        score = MJHQ.score(items, found, OWN)
        assert score.overall is None
        assert score.details["frechet_own-encoder"] is None
        assert "judgements are missing or could not be read" in score.why_not


@pytest.mark.parametrize("n", [2, 3, 19])
def test_below_ten_pictures_a_dimension_there_is_an_mmd_and_the_reason_why_there_is_no_distance(items, n):
    found = judged(items[:n], 2.0)
    score = MJHQ.score(items[:n], found, OWN)
    assert (score.overall, score.details["frechet_own-encoder"], score.details["n"]) == (None, None, n)
    assert f"no frechet_own-encoder: {n} and {n} pictures for 2 feature dimensions: a Fréchet distance takes 20" in (
        score.why_not
    )
    # The unbiased estimate, pair by pair.
    x, y = ([one.value[name] for one in found] for name in ("generated", "reference"))
    kernel = {
        (a, b): (sum(i * j for i, j in zip(a, b, strict=True)) / 2 + 1) ** 2
        for a in map(tuple, x + y)
        for b in map(tuple, x + y)
    }
    within = [sum(kernel[tuple(a), tuple(b)] for a in z for b in z if a is not b) / (n * (n - 1)) for z in (x, y)]
    across = sum(kernel[tuple(a), tuple(b)] for a in x for b in y) / n**2
    assert score.details["mmd_own-encoder"] == pytest.approx(sum(within) - 2 * across)
    assert MJHQ.score(items[:20], judged(items[:20], 2.0), OWN).overall == pytest.approx(8)


def test_one_picture_has_neither(items):
    score = MJHQ.score(items[:1], judged(items[:1], 2.0), OWN)
    assert (score.overall, score.details["mmd_own-encoder"], score.coverage.n_scored) == (None, None, 1)


def test_features_that_are_not_finite_are_a_fault_and_those_of_two_networks_an_error(items):
    fault = MJHQ.judgement(items[0], 0, [1.0, float("nan")], [1.0, 2.0])
    assert (fault.value, fault.fault) == (None, "the network's features are not finite")
    good = judged(items[:2], 0.0)
    assert MJHQ.score(items[:2], [fault, good[1]], OWN).coverage.n_parse_failed == 1
    other = MJHQ.judgement(items[0], 0, [1.0], [1.0])
    with pytest.raises(DataError, match="features of 1 to 2 dimensions are not of one network"):
        MJHQ.score(items[:2], [other, good[1]], OWN)


def test_paths(items):
    assert MJHQ.image_path(items[3], 0) == "images/k3.png"
    assert MJHQ.reference_path(items[3]) == "animals/k3.jpg"


def test_the_user_s_file_is_needed(tmp_path):
    with pytest.raises(ConfigError, match="ships no prompts"):
        MJHQ.items(None)
    file = tmp_path / "meta_data.json"
    file.write_text('{"k": {"prompt": "p"}}')
    with pytest.raises(DataError, match="'k' lacks category"):
        MJHQ.items(str(file))
