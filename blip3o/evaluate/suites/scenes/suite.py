"""Scenes: GenEval's six tasks in a closed world, where the judge is exact and every composition is held out.

Items are held-out scenes, composed in code (every part of a scene is a constant of the world) or read from a file of
records. A caption's clauses are in GenEval's format, with shapes for classes; the exact detector
(`blip3o.evaluate.suites.scenes.judge`) finds shapes, boxes and colours, and GenEval's rules score them. Figures
compare with their controls and between models of this world, never with published figures. Pure, except that a named
source is read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from blip3o import storage
from blip3o.data.images.decode import open_image
from blip3o.data.sets.scenes import compose
from blip3o.data.sets.scenes_draw import render
from blip3o.data.sets.scenes_text import captions
from blip3o.data.sets.scenes_world import COLORS, FAMILIES, GROUNDS, SHAPES, Scene, SceneObject
from blip3o.errors import DataError
from blip3o.evaluate.judges.runner import JudgeRequest, JudgeRunner, refuse_other_judge
from blip3o.evaluate.metrics.retrieval import derangement
from blip3o.evaluate.records import Item, Judge, Judgement, Score
from blip3o.evaluate.suites.geneval import prompts as geneval_prompts
from blip3o.evaluate.suites.geneval.suite import Detected, OfficialLayout, judgement, score_by_tag
from blip3o.evaluate.suites.parsing import json_lines, shown
from blip3o.evaluate.suites.scenes.judge import as_geneval, clauses, detect
from blip3o.evaluate.suites.suite import items_digest, reasons
from blip3o.rng import numpy_generator

NAME = "scenes"
ITEMS = 240  # held-out scenes, equally many of each family
SIDE = 64  # pixels of their true images
RECORD = ("family", "ground", "objects", "relation")
JUDGE = Judge(id="exact detector of scenes", version="1")


class Scenes(OfficialLayout):
    """The suite, with one image per item."""

    name = NAME
    protocol = "GenEval's rules, closed world of scenes"
    samples = 1

    def items(self, source: str | None) -> tuple[Item, ...]:
        """`ITEMS` held-out scenes, or those of a file. Raises `DataError` if that is of another format."""
        return read_items(source) if source else held_out_items()

    def score(self, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge) -> Score:
        """The mean over the six families of the share of correct images."""
        why_not = reasons(
            {
                "a closed world of this project: compare with the controls and between its models only": True,
                f"not the suite's own {ITEMS} items": items_digest(items) != items_digest(self.items(None)),
            }
        )
        return score_by_tag(self, items, judgements, judge, why_not=why_not)


def judge_picture(item: Item, sample_number: int, image: Image.Image) -> Judgement:
    """The judgement of an image of an item: GenEval's verdict, and in `found` what was detected."""
    found = as_geneval(detect(image))
    by_rule = judgement(item, sample_number, found)
    assert by_rule.value is not None  # an exact judge always has a verdict
    rows = [
        {"class": name, "color": d.color, "box": list(d.box), "score": d.score}
        for name, ds in found.items()
        for d in ds
    ]
    return replace(by_rule, value={**by_rule.value, "found": rows})


def make_judge(request: JudgeRequest) -> JudgeRunner:
    """The exact detector. Raises `ConfigError` if another judge is named."""
    refuse_other_judge("scenes", request.spec)

    def judge_sample(item: Item, sample: int, data: bytes) -> Judgement:
        return judge_picture(item, sample, open_image(data))

    return JudgeRunner(judge=JUDGE, judge_sample=judge_sample)


def shuffled(items: Sequence[Item], judgements: Iterable[Judgement]) -> list[Judgement]:
    """The control: every image judged by the caption of another item. Raises `DataError` below 2 items."""
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
    """The first `number` held-out scenes of seed 0, with which every set of scenes of that seed begins."""
    made = [compose(index, split="heldout", size=SIDE) for index in range(number)]
    return tuple(_item(index, captions(scene)[0], _facts(scene)) for index, scene in enumerate(made))


def _facts(scene: Scene) -> dict[str, Any]:
    """The part of a set's record that a judge needs."""
    objects = [{"shape": o.shape, "color": o.color, "box": list(o.box)} for o in scene.objects]
    relation = {"relation": {"subject": 0, "relation": scene.relation, "object": 1}} if scene.relation else {}
    return {"family": scene.family, "ground": scene.ground, "objects": objects, **relation}


def read_items(uri: str) -> tuple[Item, ...]:
    """The items of a JSON Lines file with a set's records: a scene's `captions` (or `prompt`) and its facts.

    Raises `DataError` for a line that is no such record.
    """
    items = []
    for index, record in enumerate(json_lines(storage.read_bytes(uri), uri)):
        where = f"{uri}, record {index + 1}"
        prompt = record["prompt"] if "prompt" in record else _first(record.get("captions"))
        fault = scene_fault(record)
        if fault or not isinstance(prompt, str):
            raise DataError(f"{where} is no scene ({fault or 'no prompt or captions of text'}): see docs/data.md")
        items.append(_item(index, prompt, record))
    return tuple(items)


def _first(captions: object) -> object:
    return captions[0] if isinstance(captions, list) and captions else None


def scene_fault(record: Mapping[str, Any]) -> str:
    """Why a record is no scene of this world that can be drawn and judged; "" where it is one."""
    objects, relation = record.get("objects"), record.get("relation")
    for name, known in (("family", FAMILIES), ("ground", tuple(GROUNDS))):
        if record.get(name) not in known:
            return f"{name} is {shown(record.get(name))}"
    if not isinstance(objects, list) or not objects:
        return f"objects are {shown(objects)}"
    if wrong := [one for one in objects if not _is_object(one)]:
        return f"an object is {shown(wrong[0])}"
    if record["family"] == "position" and not _is_relation(relation, len(objects)):
        return f"relation is {shown(relation)}"
    return ""


def _is_object(value: object) -> bool:
    if not (isinstance(value, Mapping) and value.get("shape") in SHAPES and value.get("color") in tuple(COLORS)):
        return False
    box = value.get("box")
    if not (isinstance(box, list) and len(box) == 4 and all(type(corner) is int for corner in box)):
        return False
    x0, y0, x1, y1 = box
    return 0 <= x0 < x1 <= SIDE and 0 <= y0 < y1 <= SIDE


def _is_relation(value: object, objects: int) -> bool:
    if not (isinstance(value, Mapping) and value.get("relation") in geneval_prompts.RELATIONS):
        return False
    ends = [value.get("subject"), value.get("object")]
    return all(type(end) is int and 0 <= end < objects for end in ends) and ends[0] != ends[1]


def _item(index: int, prompt: str, record: Mapping[str, Any]) -> Item:
    scene = {name: record[name] for name in RECORD if name in record}
    return Item(
        key=f"{index:05d}", prompt=prompt, record={**clauses(scene), "prompt": prompt, "scene": scene}, samples=1
    )


def true_picture(item: Item) -> Image.Image:
    """The scene of an item as training draws it, `SIDE` pixels square."""
    scene = item.record["scene"]
    objects = tuple(SceneObject(shape=o["shape"], color=o["color"], box=tuple(o["box"])) for o in scene["objects"])
    return render(Scene(family=scene["family"], ground=scene["ground"], objects=objects, relation=None, size=SIDE))
