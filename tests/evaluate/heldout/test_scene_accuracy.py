"""The four sets of pictures that the judge of scenes scores end up in their own figures."""

import io

import pytest
from PIL import Image

from blip3o.data.sets.scenes import sample
from blip3o.data.sets.scenes_world import COLORS, SHAPES, relations
from blip3o.errors import DataError
from blip3o.evaluate.heldout.scene_accuracy import is_scene, score
from blip3o.evaluate.records import Item
from blip3o.evaluate.suites.geneval import suite as geneval
from blip3o.evaluate.suites.scenes.judge import Detection, as_geneval, check, clauses
from blip3o.evaluate.suites.scenes.suite import judge_picture
from blip3o.rng import numpy_generator

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


def by_geneval(record, found):
    """GenEval's verdict in the world's own words: of each shape the best-scored one counts, in counting the best n."""
    best = {}
    for one in sorted(found, key=lambda d: -d.score):
        best.setdefault(one.shape, []).append(one)
    family, objects = record["family"], record["objects"]
    if family == "counting":
        same = best.get(objects[0]["shape"], [])
        return len(same) == len(objects) and all(d.color == objects[0]["color"] for d in same)
    firsts = [best.get(o["shape"], [None])[0] for o in objects]
    if None in firsts:
        return False
    if family in ("colors", "position", "color_attr"):
        if any(d.color != o["color"] for d, o in zip(firsts, objects, strict=True)):
            return False
    stated = record.get("relation")
    return not stated or stated["relation"] in relations(firsts[stated["subject"]].box, firsts[stated["object"]].box)


def seen(rng, record):
    """Random detections, most of them of the words of the record."""
    words = [(o["shape"], o["color"]) for o in record["objects"]]
    found = []
    for _ in range(rng.integers(0, len(words) + 3)):
        shape, color = words[rng.integers(len(words))]
        color = list(COLORS)[rng.integers(len(COLORS))] if rng.random() < 0.3 else color
        shape = SHAPES[rng.integers(len(SHAPES))] if rng.random() < 0.1 else shape
        x, y = (float(v) for v in rng.integers(0, 44, size=2))
        found.append(Detection(shape=shape, color=color, box=(x, y, x + 20, y + 20), score=float(rng.random())))
    return found


def test_the_verdict_is_geneval_s_and_the_suite_s_on_any_detections():
    rng = numpy_generator("exactness")
    verdicts = []
    for number in range(3000):
        record = RECORDS[number % len(RECORDS)]
        found = seen(rng, record)
        verdict = check(record, found)
        item = Item(key="0", prompt="p", record=clauses(record), samples=1)
        suite = geneval.judgement(item, 0, as_geneval(found)).value["correct"]
        assert verdict.correct == suite == by_geneval(record, found), (record, found)
        assert bool(verdict.reason) != verdict.correct
        verdicts.append(verdict.correct)
    assert 0.05 < sum(verdicts) / len(verdicts) < 0.95


def test_pictures_are_judged_as_the_suite_judges_them():
    """Pictures of other captions, and pictures with parts painted over: where a looser rule would accept more."""
    pictures = [PICTURES[(number + 6) % 12] for number in range(12)] + PICTURES
    for number, picture in enumerate(pictures[:12]):
        picture = picture.copy()
        picture.paste(PICTURES[number].crop((0, 0, 32, 64)), (0, 0))
        pictures.append(picture)
    for picture, record in zip(pictures, RECORDS * 3, strict=True):
        item = Item(key="0", prompt="p", record=clauses(record), samples=1)
        ours = score([record, record], drawn=[picture] * 2, decoded=BLANK[:2], true=[picture] * 2, seed=0)
        assert ours["all_correct"] == ours["judge"] == float(judge_picture(item, 0, picture).value["correct"])


def test_only_scenes_are_judged():
    assert is_scene(RECORDS[0])
    assert not is_scene({"source": "emoji"})
    assert not is_scene({})
