"""Scenes in GenEval's form: true pictures score nearly all, other captions little; clauses are what captions say."""

import io
import json

import pytest
from PIL import Image

from blip3o.data.sets.scenes import sample
from blip3o.data.sets.scenes_world import FAMILIES
from blip3o.errors import DataError
from blip3o.evaluate.suites.scenes import suite as scenes

SUITE = scenes.Scenes()
ITEMS = scenes.held_out_items(60)


@pytest.fixture(scope="module")
def findings():
    """The true pictures, judged."""
    return [scenes.judge_picture(item, 0, scenes.true_picture(item)) for item in ITEMS]


def test_true_pictures_score_nearly_all_and_other_captions_little(findings):
    score = SUITE.score(ITEMS, findings, scenes.JUDGE)
    assert score.overall >= 0.99 and set(score.categories) == set(FAMILIES)
    shuffled = SUITE.score(ITEMS, scenes.shuffled(ITEMS, findings), scenes.JUDGE)
    assert shuffled.coverage.complete and shuffled.overall < 0.15
    blank = [scenes.judge_picture(item, 0, Image.new("RGB", (64, 64), "white")) for item in ITEMS]
    assert SUITE.score(ITEMS, blank, scenes.JUDGE).overall == 0


def test_scores_are_never_comparable_with_published_ones(findings):
    score = SUITE.score(ITEMS, findings, scenes.JUDGE)
    assert not score.comparable and "closed world" in score.why_not[0]


def test_items_are_the_held_out_scenes_of_every_set_with_this_seed():
    whole = SUITE.items(None)
    assert len(whole) == scenes.ITEMS and whole[: len(ITEMS)] == ITEMS
    for index, item in enumerate(ITEMS[:12]):
        of_set = sample(index, split="heldout")
        assert item.prompt == of_set.record["captions"][0]
        assert item.record["scene"]["objects"] == of_set.record["objects"]
        assert scenes.true_picture(item).tobytes() == Image.open(io.BytesIO(of_set.image)).convert("RGB").tobytes()


def test_clauses_are_what_the_caption_states():
    objects = [{"shape": "circle", "color": "red", "box": []}, {"shape": "star", "color": "blue", "box": []}]
    relation = {"subject": 0, "relation": "above", "object": 1}
    colored = [{"class": "circle", "count": 1, "color": "red"}, {"class": "star", "count": 1, "color": "blue"}]

    def clauses(family, number=2):
        return scenes.clauses({"family": family, "objects": objects[:number], "relation": relation})

    assert clauses("single_object", 1) == {"tag": "single_object", "include": [{"class": "circle", "count": 1}]}
    assert clauses("two_object")["include"] == [{"class": name, "count": 1} for name in ("circle", "star")]
    assert clauses("color_attr")["include"] == colored
    assert clauses("position")["include"] == [colored[1], {**colored[0], "position": ["above", 0]}]
    counted = scenes.clauses({"family": "counting", "objects": objects[:1] * 3})
    assert counted["include"] == [{"class": "circle", "count": 3, "color": "red"}]
    assert counted["exclude"] == [{"class": "circle", "count": 4}]
    with pytest.raises(DataError, match="unknown family 'emoji'"):
        scenes.clauses({"family": "emoji", "objects": objects})


def test_items_may_come_from_a_file_of_records(tmp_path):
    records = [sample(index, split="heldout").record for index in range(6)]
    file = tmp_path / "scenes.jsonl"
    file.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    assert SUITE.items(str(file)) == ITEMS[:6]
    file.write_text(json.dumps({"family": "colors"}))
    with pytest.raises(DataError, match="record 1 is no scene"):
        SUITE.items(str(file))


def test_a_lacking_object_is_noticed():
    item = next(item for item in ITEMS if item.record["tag"] == "counting")
    scene = item.record["scene"]
    fewer = {**scene, "objects": scene["objects"][:-1]}
    incomplete = scenes.Item(key=item.key, prompt=item.prompt, record={**item.record, "scene": fewer}, samples=1)
    finding = scenes.judge_picture(item, 0, scenes.true_picture(incomplete))
    assert not finding.value["correct"] and f"found {len(fewer['objects'])}" in finding.value["reason"]
