"""The closed world of the scenes: its vocabulary, what is held out of training, and when a relation holds. Pure.

Families carry the names of GenEval's six tasks, and a relation holds by GenEval's rule. What a caption of a family
states (`STATES_COLOR`) is what a judge may ask for. Held-out compositions are constants of the world, the same for
every seed, so that no two sets of it disagree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blip3o.rng import derive_seed

Box = tuple[float, float, float, float]
RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}
COLORS: dict[str, RGB] = {
    "red": (215, 30, 40),
    "orange": (245, 125, 15),
    "yellow": (250, 225, 50),
    "green": (20, 160, 70),
    "blue": (30, 80, 220),
    "purple": (130, 30, 170),
    "pink": (255, 90, 180),
    "black": (20, 20, 20),
}
# Every ground is at least 120 from every colour (Euclidean, 0-255): a threshold is enough to tell objects from ground.
GROUNDS: dict[str, RGB] = {
    "white": (250, 250, 250),
    "light grey": (205, 205, 205),
    "grey": (155, 155, 155),
    "beige": (232, 220, 196),
}
STATES_COLOR = {
    "single_object": False,
    "two_object": False,
    "counting": True,
    "colors": True,
    "position": True,
    "color_attr": True,
}
FAMILIES = tuple(STATES_COLOR)

# One colour of each shape, no colour twice: every shape and every colour still occurs in training.
HELDOUT_PAIRS = frozenset(zip(SHAPES, ("purple", "yellow", "pink", "blue", "orange", "green"), strict=True))
_HELDOUT_COMBINATIONS_ONE_IN = 8


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One drawn shape and the pixels that it fills: `box` = (x0, y0, x1, y1), the right and lower edges excluded."""

    shape: str
    color: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is drawn: `objects` on a `ground`, `size` pixels square.

    `relation`, only in the family position, is that of object 0 to object 1.
    """

    family: str
    ground: str
    objects: tuple[SceneObject, ...]
    relation: str | None
    size: int


def is_heldout(pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether a scene of these (shape, colour) pairs is kept out of training.

    It is if one of them is a held-out pair, or if two different ones are a held-out combination (in whichever order).
    """
    different = sorted(set(pairs))
    if not HELDOUT_PAIRS.isdisjoint(different):
        return True
    words = [word for pair in different for word in pair]
    return len(different) > 1 and derive_seed("scenes", "combination", *words) % _HELDOUT_COMBINATIONS_ONE_IN == 0


def relations(a: Box, b: Box) -> frozenset[str]:
    """The relations in which box `a` stands to box `b`, by GenEval's rule: none, one, or two (such as left of and
    above).

    The offset of the centres is shortened on each axis by a tenth of both boxes' extents, and what remains, over the
    length of the full offset, must be more than a half.
    """
    corners_a, corners_b = np.asarray(a, dtype=float).reshape(2, 2), np.asarray(b, dtype=float).reshape(2, 2)
    offset = corners_a.mean(axis=0) - corners_b.mean(axis=0)
    extents = np.abs(corners_a[1] - corners_a[0]) + np.abs(corners_b[1] - corners_b[0])
    revised = np.maximum(np.abs(offset) - 0.1 * extents, 0) * np.sign(offset)
    if np.all(np.abs(revised) < 1e-3):
        return frozenset()
    dx, dy = revised / np.linalg.norm(offset)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return frozenset(name for name, true in holds.items() if true)
