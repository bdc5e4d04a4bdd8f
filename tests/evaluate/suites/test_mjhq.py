"""MJHQ: its file, its layout, and a distance under its honest name."""

import json

import pytest

from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.suite import Judge, Judgement
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
        assert "findings are missing or could not be read" in score.why_not


def test_too_few_pictures_are_refused(items):
    with pytest.raises(DataError, match="19 and 19 pictures for 2 feature dimensions"):
        MJHQ.score(items[:19], judged(items[:19], 0.0), OWN)


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
