"""Scenes are a pure function of (seed, split, index), drawn as recorded, split by composition, and spoken of truly."""

import io
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip3o.data.sets import scenes
from blip3o.data.sets.scenes_draw import coverage, render
from blip3o.data.sets.scenes_text import questions
from blip3o.data.sets.scenes_world import (
    COLORS,
    FAMILIES,
    GROUNDS,
    HELDOUT_PAIRS,
    PLURALS,
    SHAPES,
    STATES_COLOR,
    is_heldout,
)
from blip3o.errors import DataError

SINGULAR = {plural: shape for shape, plural in PLURALS.items()}
OPEN = ("listing", "shapes")  # kinds of questions without choices, which are not in the headline
NUMBERS = {"two": 2, "three": 3, "four": 4}


@pytest.fixture(scope="module")
def records():
    return [sample.record for sample in scenes.samples(train=600, heldout=180, seed=3)]


def things(record):
    return [(o["shape"], o["color"]) for o in record["objects"]]


def test_a_sample_depends_on_seed_split_and_index_alone():
    stream = list(scenes.samples(train=7, heldout=3, seed=1))
    assert stream[5] == scenes.sample(5, split="train", seed=1) and stream[9] == scenes.sample(
        2, split="heldout", seed=1
    )
    assert len({s.key for s in stream}) == 10
    assert scenes.sample(5, split="train", seed=1) != scenes.sample(5, split="train", seed=2)
    assert scenes.sample(5, split="train", seed=1).image != scenes.sample(5, split="heldout", seed=1).image


def test_held_out_compositions_are_never_in_training_and_always_in_held_out_scenes():
    for index in range(1200):
        assert not is_heldout([(o.shape, o.color) for o in scenes.compose(index, split="train").objects])
    heldout = [[(o.shape, o.color) for o in scenes.compose(i, split="heldout").objects] for i in range(300)]
    assert all(is_heldout(pairs) for pairs in heldout)
    by_pair = sum(not HELDOUT_PAIRS.isdisjoint(pairs) for pairs in heldout)
    assert 0 < by_pair < len(heldout), "held-out pairs and held-out combinations both occur"


def test_every_value_occurs_in_training_and_families_take_turns(records):
    train = [record for record in records if record["split"] == "train"]
    seen = {value for record in train for thing in things(record) for value in thing}
    assert seen == set(SHAPES) | set(COLORS) and {r["ground"] for r in train} == set(GROUNDS)
    assert Counter(r["family"] for r in train) == dict.fromkeys(FAMILIES, 100)
    counts = Counter(len(r["objects"]) for r in train if r["family"] == "counting")
    assert set(counts) == {2, 3, 4} and min(counts.values()) > 15
    relations = Counter(r["relation"]["relation"] for r in train if r["family"] == "position")
    assert set(relations) == {"left of", "right of", "above", "below"} and min(relations.values()) > 10


def test_families_differ_in_what_they_hold(records):
    for record in records:
        shapes, colors = zip(*things(record), strict=True)
        if record["family"] == "counting":
            assert len(set(things(record))) == 1
        else:
            assert len(shapes) == (1 if record["family"] in ("single_object", "colors") else 2)
            assert len(set(shapes)) == len(shapes)
        assert record["family"] != "color_attr" or len(set(colors)) == 2
        assert ("relation" in record) == (record["family"] == "position")
        side = record["objects"][0]["box"][2] - record["objects"][0]["box"][0]
        assert len(shapes) > 1 or side >= 30


@pytest.mark.parametrize("size", [48, 64, 128])
def test_boxes_are_exactly_what_is_drawn_and_do_not_touch(size):
    for index in range(48):
        scene = scenes.compose(index, split="train", size=size)
        image = np.asarray(render(scene), dtype=int)
        drawn = np.any(image != GROUNDS[scene.ground], axis=-1)
        for item in scene.objects:
            x0, y0, x1, y1 = item.box
            assert 0 < x0 < x1 < size and 0 < y0 < y1 < size
            patch = drawn[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1]
            assert np.flatnonzero(patch.any(axis=0))[[0, -1]].tolist() == [1, x1 - x0]
            assert np.flatnonzero(patch.any(axis=1))[[0, -1]].tolist() == [1, y1 - y0]
            assert tuple(image[round((y0 + y1) / 2), (x0 + x1) // 2]) == COLORS[item.color]
            drawn[y0:y1, x0:x1] = False
        assert not drawn.any()


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", np.pi / 4),
        ("square", 1.0),
        ("triangle", 0.5),
        ("cross", 1 - 0.66**2),
        ("star", 0.36),
        ("heart", 0.61),
    ],
)
def test_shapes_fill_the_part_of_their_box_that_geometry_says(shape, area):
    assert coverage(shape, 64, 64).mean() == pytest.approx(area, abs=0.02)
    assert coverage(shape, 20, 20).mean() == pytest.approx(area, abs=0.03)


def test_shapes_are_told_apart_by_their_overlap_even_when_small():
    for a, b in combinations(SHAPES, 2):
        first, second = coverage(a, 14, 14), coverage(b, 14, 14)
        assert np.minimum(first, second).sum() / np.maximum(first, second).sum() < 0.85


def test_images_are_rgb_png_of_the_size_asked_for():
    image = Image.open(io.BytesIO(scenes.sample(0, split="train", size=96).image))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (96, 96))


def parsed(words: str) -> tuple[int, str | None, str]:
    """Number, colour or None, and shape of a noun phrase."""
    first, *middle, last = words.split()
    number = NUMBERS.get(first, 1)
    assert first in NUMBERS or first == ("an" if ([*middle, last][0][0] in "aeiou") else "a"), words
    return number, middle[0] if middle else None, SINGULAR[last] if number > 1 else last


def test_captions_state_what_is_drawn(records):
    for record in records:
        stated = STATES_COLOR[record["family"]]
        expected = Counter((s, c if stated else None) for s, c in things(record))
        assert len(set(record["captions"])) == len(record["captions"]) >= 4
        for caption in record["captions"]:
            plain = re.sub(r"^a (photo|picture) of | on a (\w+ )?\w+ ground$", "", caption)
            parts = re.split(r" (left of|right of|above|below|and) ", plain)
            found = Counter()
            for words in parts[::2]:
                number, color, shape = parsed(words)
                found[shape, color] += number
            assert found == expected, caption
            assert " ground" not in caption or caption.endswith(f" on a {record['ground']} ground")
            if record["family"] == "position":
                check_relation(record, parsed(parts[0])[2], parts[1])


def check_relation(record, shape: str, relation: str) -> None:
    """By the boxes' centres: the object of this shape stands in this relation to the other one."""
    subject = next(o for o in record["objects"] if o["shape"] == shape)
    other = next(o for o in record["objects"] if o["shape"] != shape)
    dx, dy = (sum(subject["box"][axis::2]) / 2 - sum(other["box"][axis::2]) / 2 for axis in (0, 1))
    assert {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}[relation]
    assert (abs(dx) > abs(dy)) == (relation in ("left of", "right of")), "the relation named is the main one"


def test_every_answer_is_true_of_the_objects(records):
    kinds = Counter()
    for record in records:
        for qa in record["qa"]:
            kinds[qa["kind"]] += 1
            assert qa["answer"] == true_answer(record, qa["question"]), qa
            assert qa["choices"] == [] if qa["kind"] in OPEN else qa["answer"] in qa["choices"]
    assert set(kinds) == {"color", "shape", "count", "position", "presence", *OPEN} and min(kinds.values()) > 100


def true_answer(record, question: str) -> str:
    """Answers a question from the objects alone."""
    objects = record["objects"]
    ordered = sorted(objects, key=lambda o: (o["box"][0], o["box"][1]))
    if question == "List the objects.":
        answer = ", ".join(f"{o['color']} {o['shape']}" for o in ordered)
    elif question == "List the shapes.":
        answer = ", ".join(o["shape"] for o in ordered)
    elif match := re.fullmatch(r"What color (?:is|are) the (\w+)\?", question):
        shape = SINGULAR.get(match[1], match[1])
        (answer,) = {o["color"] for o in objects if o["shape"] == shape}
    elif match := re.fullmatch(r"What shape (?:is|are) the (\w+) objects?\?", question):
        (answer,) = {o["shape"] for o in objects if o["color"] == match[1]}
    elif match := re.fullmatch(r"How many (\w+) are there\?", question):
        answer = str(sum(match[1] in ("objects", PLURALS[o["shape"]]) for o in objects))
    elif match := re.fullmatch(r"Is the (\w+) left of, right of, above or below the (\w+)\?", question):
        a, b = (next(o["box"] for o in objects if o["shape"] == shape) for shape in match.groups())
        dx, dy = a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]
        answer = ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")
    else:
        color, shape = re.fullmatch(r"Is there an? (\w+) (\w+)\?", question).groups()
        answer = "yes" if (shape, color) in things(record) else "no"
    return answer


def test_what_is_asked_of_grey_pictures_needs_no_color():
    marked = set()
    for index in range(300):
        scene = scenes.compose(index, split="train")
        # Whatever the colours are, the marked answers are the same, and no colour distinguishes the things asked about.
        faded = replace(scene, objects=tuple(replace(item, color="black") for item in scene.objects))
        asked, again = (
            [pair for pair in questions(one, heldout=False, rng=np.random.default_rng(index)) if pair.get("grey")]
            for one in (scene, faded)
        )
        assert [(pair["kind"], pair["answer"]) for pair in asked] == [(pair["kind"], pair["answer"]) for pair in again]
        marked |= {pair["kind"] for pair in asked}
    assert marked == {"shape", "count", "position", "shapes"}


def test_yes_and_no_are_balanced_and_training_text_names_no_held_out_pair(records):
    for record in records:
        assert sorted(q["answer"] for q in record["qa"] if q["kind"] == "presence") == ["no", "yes"]
        if record["split"] == "train":
            said = [q[part] for q in record["qa"] for part in ("question", "answer")]
            text = "\n".join(record["captions"] + said + [q["answer"] for q in record["caption_qa"]])
            named = re.findall(rf"({'|'.join(COLORS)}) ({'|'.join([*SHAPES, *SINGULAR])})", text)
            assert HELDOUT_PAIRS.isdisjoint((SINGULAR.get(shape, shape), color) for color, shape in named)


def test_built_twice_the_bytes_are_equal_and_a_whole_set_is_left_alone(tmp_path, monkeypatch):
    numbers = {"train": 12, "heldout": 5, "samples_per_shard": 10}
    summary = scenes.build_scenes(str(tmp_path / "a"), **numbers)
    scenes.build_scenes(str(tmp_path / "b"), **numbers)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert summary.counts == {"train": 12, "heldout": 5} and len(summary.shards["train"]) == 2
    assert not scenes.build_scenes(str(tmp_path / "a"), **numbers).built
    with pytest.raises(DataError, match="another folder"):
        scenes.build_scenes(str(tmp_path / "a"), **numbers, seed=1)
    monkeypatch.setattr(scenes, "EDITION", scenes.EDITION + 1)
    with pytest.raises(DataError, match="another folder"):
        scenes.build_scenes(str(tmp_path / "a"), **numbers)


@pytest.mark.parametrize(
    "numbers", [{"train": 0, "heldout": 0}, {"train": -1, "heldout": 2}, {"train": 1, "heldout": 1, "size": 32}]
)
def test_impossible_numbers_are_refused(tmp_path, numbers):
    with pytest.raises(DataError, match="at least"):
        scenes.build_scenes(str(tmp_path), **numbers)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_full_caption_leaves_nothing_out(records):
    for record in records:
        words, ground = record["full_caption"].split(" on a ")
        assert ground == f"{record['ground']} ground"
        found = Counter()
        for part in re.split(r" (?:left of|right of|above|below|and) ", words):
            number, color, shape = parsed(part)
            found[shape, color] += number
        assert found == Counter(things(record))


# What is right of or below something comes after it from left to right and from top to bottom.
LATER = {"right of": "left of", "below": "above"}


def filled(caption):
    """The form of a scene as a caption of it alone answers it."""
    words = re.sub(r"^a (?:photo|picture) of | on a [a-z ]+ ground$", "", caption)
    first, *rest = re.split(r" (left of|right of|above|below|and) ", words)
    relation, second = rest or ("and", None)
    if relation in LATER:
        first, relation, second = second, LATER[relation], first
    named = [parsed(part) for part in (first, second) if part]
    form = {"number?": str(sum(number for number, _, _ in named)), "second shape?": "none", "second color?": "none"}
    for place, (_, color, shape) in zip(("first", "second"), named, strict=False):
        form |= {f"{place} shape?": shape, f"{place} color?": color or "any"}
    return form | {"place?": "none" if relation == "and" else relation.removesuffix(" of")}


def test_every_caption_fills_the_form_of_its_scene_alike(records):
    for record in records:
        form = {pair["question"]: pair["answer"] for pair in record["caption_qa"]}
        assert len(record["captions"]) == 4
        for caption in record["captions"]:
            assert filled(caption) == form


def test_without_a_relation_captions_name_objects_from_left_to_right(records):
    for record in records:
        corners = [item["box"][:2] for item in record["objects"]]
        if "relation" not in record:
            assert corners == sorted(corners)
    said = Counter(record["relation"]["relation"] for record in records if "relation" in record)
    assert min(said[name] for name in ("left of", "right of", "above", "below")) > 0.15 * said.total()


def test_where_the_first_object_asked_about_stands_is_evenly_drawn(records):
    """Else a reply by the order of the question would be right more often than by chance."""
    told = Counter(pair["answer"] for record in records for pair in record["qa"] if pair["kind"] == "position")
    assert set(told) == {"left", "right", "above", "below"} and min(told.values()) > 0.15 * told.total()
