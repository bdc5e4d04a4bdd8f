"""What is said of a scene: captions in several phrasings, and questions whose answers follow from its objects. Pure.

All captions of a scene state the same facts: shapes and numbers always, colours and relations as the family asks. No
text of a training scene names a held-out pair, not even to deny it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from blip3o.data.sets.scenes_world import (
    COLORS,
    HELDOUT_PAIRS,
    PLURALS,
    SHAPES,
    STATES_COLOR,
    Scene,
    SceneObject,
    relations,
)

COUNT_CHOICES = ("1", "2", "3", "4")
POSITION_CHOICES = ("left", "right", "above", "below")
_NUMBERS = {2: "two", 3: "three", 4: "four"}


def noun(shape: str, color: str | None = None, count: int = 1) -> str:
    """Some objects in words: "a red circle", "an orange star", "three squares"."""
    if count > 1:
        return " ".join(filter(None, (_NUMBERS[count], color, PLURALS[shape])))
    words = f"{color} {shape}" if color else shape
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def left_to_right(objects: Sequence[SceneObject]) -> list[SceneObject]:
    """Objects by their left edges, those of one column from top to bottom."""
    return sorted(objects, key=lambda o: o.box[:2])


def captions(scene: Scene) -> list[str]:
    """All phrasings of a scene, the plain one first; all name its objects in the same order."""
    stated = _statement(scene, colors=STATES_COLOR[scene.family])
    return [stated, f"a photo of {stated}", f"a picture of {stated}", f"{stated} on a {scene.ground} ground"]


def full_caption(scene: Scene) -> str:
    """Everything that can be said of a scene, colours and ground too, whatever the captions of its family leave out."""
    return f"{_statement(scene, colors=True)} on a {scene.ground} ground"


def _statement(scene: Scene, *, colors: bool) -> str:
    if scene.family == "counting":
        return noun(scene.objects[0].shape, scene.objects[0].color, len(scene.objects))
    return f" {scene.relation or 'and'} ".join(noun(o.shape, o.color if colors else None) for o in scene.objects)


def questions(scene: Scene, *, heldout: bool, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The `qa` of a scene; `rng` draws what is asked about. Kinds, all with closed answers:

    color, shape, count; position where exactly one relation holds; presence twice, once yes and once no; and two open
    ones whose answers name every object from left to right, with colours and without: several times the supervision
    for the same picture. Those that the same picture without colours answers are marked `grey`.
    """
    objects = scene.objects
    chosen = objects[int(rng.integers(len(objects)))]
    found = [_color(chosen, objects), _shape(chosen, objects), _count(chosen, objects, ask_all=bool(rng.integers(2)))]
    found += [_position(objects, first=int(rng.permutation(2)[0]))] if len(objects) == 2 else []
    absent = _absent(objects, heldout=heldout, rng=rng)
    found += [_presence(chosen.shape, chosen.color, "yes"), _presence(*absent, "no"), *_listings(objects)]
    return [question for question in found if question]


def caption_questions(scene: Scene) -> list[dict[str, Any]]:
    """The `caption_qa` of a scene: all that its captions state, as short questions that any of them answers.

    Shape and colour of the first and of the second kind of object ("any" for a colour that is not stated, "none" for a
    kind that is not there), the number of objects, and where the first stands. First is what is first in the picture
    from left to right and from top to bottom, whichever the caption names first: a generator's instructions come in
    the order in which it draws. Asked by place, not by shape: "which colour has the circle?" teaches which colours are
    never a circle's, and held-out captions are then misread.
    """
    stated = STATES_COLOR[scene.family]
    objects = left_to_right(scene.objects)
    kinds = list(dict.fromkeys((o.shape, o.color if stated else "any") for o in objects))
    (shape, color), (other_shape, other_color) = [*kinds, ("none", "none")][:2]
    answers = {
        "first shape?": shape,
        "first color?": color,
        "second shape?": other_shape,
        "second color?": other_color,
        "number?": str(len(objects)),
        "place?": _place(min(relations(objects[0].box, objects[1].box))) if scene.relation else "none",
    }
    return [{"question": question, "answer": answer} for question, answer in answers.items()]


def _place(relation: str) -> str:
    return relation.removesuffix(" of")


def _qa(kind: str, question: str, answer: str, choices: tuple[str, ...], *, grey: bool = False) -> dict[str, Any]:
    marks = {"grey": True} if grey else {}
    return {"kind": kind, "question": question, "answer": answer, "choices": list(choices), **marks}


def _color(chosen: SceneObject, objects: tuple[SceneObject, ...]) -> dict[str, Any] | None:
    same = [o for o in objects if o.shape == chosen.shape]
    if len({o.color for o in same}) > 1:
        return None
    things = f"is the {chosen.shape}" if len(same) == 1 else f"are the {PLURALS[chosen.shape]}"
    return _qa("color", f"What color {things}?", chosen.color, tuple(COLORS))


def _shape(chosen: SceneObject, objects: tuple[SceneObject, ...]) -> dict[str, Any] | None:
    same = [o for o in objects if o.color == chosen.color]
    if len({o.shape for o in same}) > 1:
        return None
    things = f"is the {chosen.color} object" if len(same) == 1 else f"are the {chosen.color} objects"
    # Without colours it is unclear which object is meant, unless all have one shape.
    alike = len({o.shape for o in objects}) == 1
    return _qa("shape", f"What shape {things}?", chosen.shape, SHAPES, grey=alike)


def _count(chosen: SceneObject, objects: tuple[SceneObject, ...], *, ask_all: bool) -> dict[str, Any]:
    things = "objects" if ask_all else PLURALS[chosen.shape]
    number = sum(ask_all or o.shape == chosen.shape for o in objects)
    return _qa("count", f"How many {things} are there?", str(number), COUNT_CHOICES, grey=True)


def _position(objects: tuple[SceneObject, ...], *, first: int) -> dict[str, Any] | None:
    a, b = objects[first], objects[1 - first]
    holding = relations(a.box, b.box)
    if len(holding) != 1 or a.shape == b.shape:
        return None
    (relation,) = holding
    question = f"Is the {a.shape} left of, right of, above or below the {b.shape}?"
    return _qa("position", question, _place(relation), POSITION_CHOICES, grey=True)


def _presence(shape: str, color: str, answer: str) -> dict[str, Any]:
    return _qa("presence", f"Is there {noun(shape, color)}?", answer, ("yes", "no"))


def _absent(objects: tuple[SceneObject, ...], *, heldout: bool, rng: np.random.Generator) -> tuple[str, str]:
    """A (shape, colour) that is not in the scene but shares one of the two with something that is."""
    present = {(o.shape, o.color) for o in objects}
    shapes, colors = {o.shape for o in objects}, {o.color for o in objects}
    near = [
        (shape, color)
        for shape in SHAPES
        for color in COLORS
        if (shape in shapes or color in colors) and (shape, color) not in present
        if heldout or (shape, color) not in HELDOUT_PAIRS
    ]
    return near[int(rng.integers(len(near)))]


def _listings(objects: tuple[SceneObject, ...]) -> list[dict[str, Any]]:
    ordered = left_to_right(objects)
    named = ", ".join(f"{o.color} {o.shape}" for o in ordered)
    shapes = ", ".join(o.shape for o in ordered)
    return [_qa("listing", "List the objects.", named, ()), _qa("shapes", "List the shapes.", shapes, (), grey=True)]
