"""Scenes: GenEval's six tasks in a closed world, where the judge is exact and every composition is held out.

Items are held-out scenes, composed by code (every part of one is a constant of the world) or read from a file of
records. A caption's clauses are written as GenEval's, with shapes for classes; the exact detector
(`blip3o.evaluate.scenes`) finds shapes, boxes and colours, and GenEval's rules score them. Figures compare with their
controls and between models of this world, and with nothing published. Pure, but for the reading of a named source.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from blip3o.data import storage
from blip3o.data.sets.scenes import compose
from blip3o.data.sets.scenes_draw import render
from blip3o.data.sets.scenes_text import captions
from blip3o.data.sets.scenes_world import FAMILIES, STATES_COLOR, Scene, SceneObject
from blip3o.errors import DataError
from blip3o.evaluate.retrieval import derangement
from blip3o.evaluate.scenes import detect
from blip3o.evaluate.suite import Item, Judge, Judgement, Score, items_digest, reasons
from blip3o.evaluate.suites.files import json_lines
from blip3o.evaluate.suites.geneval import Detected, OfficialLayout, judgement, score_by_tag
from blip3o.rng import numpy_generator

NAME = "scenes"
ITEMS = 240  # held-out scenes, as many of each family
SIDE = 64  # pixels of their true pictures
RECORD = ("family", "ground", "objects", "relation")
JUDGE = Judge(id="exact detector of scenes", version="1")
# What the exact detector takes for a shape at all, it is sure of: its fits, from 0.72 on, are confidences above what
# GenEval asks of any class (0.3) and in counting (0.9).
SURE = 0.9


class Scenes(OfficialLayout):
    """The suite. One drawing of each item."""

    name = NAME
    protocol = "GenEval's rules, closed world of scenes"
    samples = 1

    def items(self, source: str | None) -> tuple[Item, ...]:
        """`ITEMS` held-out scenes, or those of a file. Raises `DataError` if that is of another format."""
        return read_items(source) if source else held_out_items()

    def score(self, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge) -> Score:
        """The mean over the six families of the share of correct pictures."""
        why_not = reasons(
            {
                "a closed world of this project: compare with the controls and between its models only": True,
                f"not the suite's own {ITEMS} items": items_digest(items) != items_digest(self.items(None)),
            }
        )
        return score_by_tag(self, items, judgements, judge, why_not=why_not)


def find(image: Image.Image) -> dict[str, list[Detected]]:
    """What the exact detector finds, by shape, in GenEval's form."""
    found: dict[str, list[Detected]] = {}
    for one in detect(image):
        score = SURE + (1 - SURE) * one.score
        found.setdefault(one.shape, []).append(Detected(box=one.box, score=score, color=one.color))
    return found


def judge_picture(item: Item, sample_number: int, image: Image.Image) -> Judgement:
    """The finding on a picture of an item; beside GenEval's verdict, `found` keeps what was detected."""
    found = find(image)
    by_rule = judgement(item, sample_number, found)
    assert by_rule.value is not None  # an exact judge always has a verdict
    rows = [
        {"class": name, "color": d.color, "box": list(d.box), "score": d.score}
        for name, ds in found.items()
        for d in ds
    ]
    return replace(by_rule, value={**by_rule.value, "found": rows})


def shuffled(items: Sequence[Item], judgements: Iterable[Judgement]) -> list[Judgement]:
    """The control: every picture judged by the caption of another item. Raises `DataError` below 2 items."""
    order = derangement(len(items), numpy_generator("evaluate", NAME, "shuffled"))
    other = {item.key: items[place] for item, place in zip(items, order, strict=True)}
    return [_by_another(one, other[one.key]) for one in judgements]


def _by_another(one: Judgement, other: Item) -> Judgement:
    if one.value is None:
        return one
    found: dict[str, list[Detected]] = {}
    for row in one.value["found"]:
        detected = Detected(box=tuple(row["box"]), score=row["score"], color=row["color"])
        found.setdefault(row["class"], []).append(detected)
    return replace(judgement(other, one.sample, found), key=one.key)


def held_out_items(number: int = ITEMS) -> tuple[Item, ...]:
    """The first `number` held-out scenes of seed 0, which every set of scenes with that seed begins with."""
    made = [compose(index, split="heldout", size=SIDE) for index in range(number)]
    return tuple(_item(index, captions(scene)[0], _facts(scene)) for index, scene in enumerate(made))


def _facts(scene: Scene) -> dict[str, Any]:
    """What a set's record says of a scene, as far as a judge needs it."""
    objects = [{"shape": o.shape, "color": o.color, "box": list(o.box)} for o in scene.objects]
    relation = {"relation": {"subject": 0, "relation": scene.relation, "object": 1}} if scene.relation else {}
    return {"family": scene.family, "ground": scene.ground, "objects": objects, **relation}


def read_items(uri: str) -> tuple[Item, ...]:
    """Items of a file of JSON lines, each with a scene's `captions` (or `prompt`) and facts, as a set's records are.

    Raises `DataError` for a line that is no such record.
    """
    items = []
    for index, record in enumerate(json_lines(storage.read_bytes(uri), uri)):
        try:
            prompt = record["prompt"] if "prompt" in record else record["captions"][0]
            items.append(_item(index, str(prompt), record))
        except (KeyError, IndexError, TypeError) as error:
            raise DataError(f"{uri}, record {index + 1} is no scene ({error!r}): see docs/data.md") from error
    return tuple(items)


def _item(index: int, prompt: str, record: Mapping[str, Any]) -> Item:
    scene = {name: record[name] for name in RECORD if name in record}
    return Item(
        key=f"{index:05d}", prompt=prompt, record={**clauses(scene), "prompt": prompt, "scene": scene}, samples=1
    )


def clauses(scene: Mapping[str, Any]) -> dict[str, Any]:
    """What a scene's caption states, as GenEval writes it: `tag`, `include` and, in counting, `exclude`.

    Raises `DataError` for a family that is not of this world.
    """
    family, objects = scene["family"], scene["objects"]
    if family not in FAMILIES:
        raise DataError(f"unknown family '{family}': expected one of {', '.join(FAMILIES)}")
    count = len(objects) if family == "counting" else 1
    stated = [_clause(described, count, family) for described in (objects[:1] if family == "counting" else objects)]
    if family == "counting":
        surplus = {"class": objects[0]["shape"], "count": count + 1}
        return {"tag": family, "include": stated, "exclude": [surplus]}
    if family == "position":
        relation = scene["relation"]
        subject, target = stated[relation["subject"]], stated[relation["object"]]
        stated = [target, {**subject, "position": [relation["relation"], 0]}]
    return {"tag": family, "include": stated}


def _clause(described: Mapping[str, Any], count: int, family: str) -> dict[str, Any]:
    color = {"color": described["color"]} if STATES_COLOR[family] else {}
    return {"class": described["shape"], "count": count, **color}


def true_picture(item: Item) -> Image.Image:
    """The scene of an item as it is drawn for training, `SIDE` pixels square."""
    scene = item.record["scene"]
    objects = tuple(SceneObject(shape=o["shape"], color=o["color"], box=tuple(o["box"])) for o in scene["objects"])
    return render(Scene(family=scene["family"], ground=scene["ground"], objects=objects, relation=None, size=SIDE))
