"""The four sets of pictures that the judge of scenes scores end up in their own figures."""

import io

import pytest
from PIL import Image

from blip3o.data.sets.scenes import sample
from blip3o.errors import DataError
from blip3o.evaluate.exactness import is_scene, score

SCENES = [sample(index, split="heldout") for index in range(12)]
RECORDS = [scene.record for scene in SCENES]
PICTURES = [Image.open(io.BytesIO(scene.image)) for scene in SCENES]
BLANK = [Image.new("RGB", (64, 64), "white")] * len(SCENES)


def test_true_pictures_are_exact_and_other_captions_are_not():
    scores = score(RECORDS, drawn=PICTURES, decoded=BLANK, true=PICTURES, seed=0)
    assert all(scores[part] == 1.0 for part in ("all_correct", "shape", "color", "count", "relation", "judge"))
    assert scores["upper_bound"] == 0.0
    assert scores["shuffled"] < 0.3
    assert (scores["n"], scores["n_color"], scores["n_relation"]) == (12, 8, 2)


def test_the_control_judges_each_drawing_by_another_caption():
    records, exchanged = RECORDS[2:4], [PICTURES[3], PICTURES[2]]
    scores = score(records, drawn=exchanged, decoded=exchanged, true=exchanged, seed=0)
    assert (scores["all_correct"], scores["shuffled"]) == (0.0, 1.0)


def test_empty_pictures_are_wrong_in_every_part():
    scores = score(RECORDS, drawn=BLANK, decoded=PICTURES, true=BLANK, seed=0)
    assert [scores[part] for part in ("all_correct", "shape", "color", "count", "relation", "judge")] == [0.0] * 6
    assert scores["upper_bound"] == 1.0


def test_each_family_has_its_own_share():
    half = [
        picture if record["family"] == "counting" else blank
        for record, picture, blank in zip(RECORDS, PICTURES, BLANK, strict=True)
    ]
    families = score(RECORDS, drawn=half, decoded=half, true=half, seed=0)["families"]
    assert families.pop("counting") == {"all_correct": 1.0, "n": 2}
    assert len(families) == 5
    assert all(family == {"all_correct": 0.0, "n": 2} for family in families.values())


def test_relations_that_nobody_states_have_no_figure():
    plain = [i for i, record in enumerate(RECORDS) if "relation" not in record]
    pictures = [PICTURES[i] for i in plain]
    scores = score([RECORDS[i] for i in plain], drawn=pictures, decoded=pictures, true=pictures, seed=0)
    assert scores["relation"] is None
    assert scores["n_relation"] == 0


def test_one_scene_has_no_control():
    with pytest.raises(DataError, match="at least 2"):
        score(RECORDS[:1], drawn=PICTURES[:1], decoded=PICTURES[:1], true=PICTURES[:1], seed=0)


def test_only_scenes_are_judged():
    assert is_scene(RECORDS[0])
    assert not is_scene({"source": "emoji"})
    assert not is_scene({})
