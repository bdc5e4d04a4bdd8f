"""The exact judge of the closed world: detects the coloured shapes in an image, and checks them against its caption.

Detection is a colour threshold, connected components, and a comparison of each component with every shape drawn in its
box. It works at 64 pixels whatever the image's size (boxes are returned in the image's pixels). Anything that is not
clearly one of the world's shapes in one of its colours is not detected. The rules of the six families are GenEval's.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from blip3o.data.sets.scenes_draw import coverage
from blip3o.data.sets.scenes_world import COLORS, FAMILIES, SHAPES, STATES_COLOR
from blip3o.errors import DataError
from blip3o.evaluate.suites.geneval import suite as geneval

_SIDE = 64  # pixels; the size at which the numbers below were measured
_FOREGROUND = 55.0  # RGB distance from the ground at which a pixel belongs to an object; the nearest colour has 121
_MIN_GROUND_SHARE = 0.6  # of the rim; leaves room for an object that the image's edge clips
_MAX_COLOR_DISTANCE = 80.0  # RGB distance up to which a component's colour is one of the world's
_MIN_CORE = 4  # pixels of one colour that must survive an erosion; the smallest drawn star keeps about 20
_MIN_CORE_SHARE = 0.1  # of the largest core of a touching group: a smaller one is the rim of another object
_MIN_SIDE, _MAX_SIDE = 7, 58  # pixels; drawn objects have 14 to 48
_MAX_ASPECT = 2.0  # longer over shorter side; drawn objects have 1
_MIN_SCORE = 0.72  # overlap with the best shape; drawn ones reach 0.95, and 0.8 with a blur of 0.7 pixels
_STEEPNESS = 3.0  # of edges before the comparison, both seen and drawn

SURE = 0.9  # the lowest confidence of a detection, on GenEval's scale

_PALETTE = np.array(list(COLORS.values()), dtype=np.float32)
_NAMES = tuple(COLORS)


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One detected shape: `box` = (x0, y0, x1, y1) in the image's pixels, `score` its fit to the shape."""

    shape: str
    color: str
    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an image shows what its caption says, and which part of it.

    `correct` and `reason` ("" where it is correct) are GenEval's. `shape_ok`: every shape appears often enough,
    whatever its colour; `color_ok`: every colour in the caption appears often enough, whatever its shape; `count_ok`:
    there are exactly as many objects as in the scene; `relation_ok`: the objects are there and the relation holds (True
    where none is stated). An image with shape_ok and color_ok that is not `correct` has bound a colour to the wrong
    shape, or has the wrong number or relation.
    """

    correct: bool
    reason: str
    shape_ok: bool
    color_ok: bool
    count_ok: bool
    relation_ok: bool


def detect(image: Image.Image | np.ndarray) -> list[Detection]:
    """The shapes in an RGB image (uint8 [H, W, 3] if an array), the best score first."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    # Shrink by averaging, which does not alias, and enlarge smoothly.
    method = Image.Resampling.BOX if min(picture.size) > _SIDE else Image.Resampling.BICUBIC
    small = picture.convert("RGB").resize((_SIDE, _SIDE), method)
    pixels = np.asarray(small, dtype=np.float32)
    ground = _ground(pixels)
    if ground is None:
        return []
    found = [_recognise(pixels, ground, core, region) for core, region in _objects(pixels, ground)]
    scale = np.array(picture.size * 2) / _SIDE
    rescaled = (replace(d, box=tuple((np.array(d.box) * scale).tolist())) for d in found if d)
    return sorted(rescaled, key=lambda d: -d.score)


def _ground(pixels: np.ndarray) -> np.ndarray | None:
    """The ground's colour, float32 [3]: the median of the two outermost rings, which no drawn object reaches.

    None where too much of the rings has other colours: a mosaic has no ground, and its tiles are not shapes on one.
    """
    rim = np.ones(pixels.shape[:2], dtype=bool)
    rim[2:-2, 2:-2] = False
    ground = np.median(pixels[rim], axis=0)
    like_it = np.linalg.norm(pixels[rim] - ground, axis=-1) < _FOREGROUND
    return ground if like_it.mean() >= _MIN_GROUND_SHARE else None


def _objects(pixels: np.ndarray, ground: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Two masks [64, 64] for each object: its `core`, well inside and of one colour, and its `region`, up to its edge.

    Cores are found first because a blurred edge passes through other colours; such rims are thin and do not survive the
    erosion. The pixels of a group of touching objects are assigned to the nearest core.
    """
    foreground = np.linalg.norm(pixels - ground, axis=-1) > _FOREGROUND
    nearest = np.argmin(np.linalg.norm(pixels[:, :, None] - _PALETTE, axis=-1), axis=-1)
    groups = label(foreground)
    cores = [core for c in np.unique(nearest[foreground]) for core in _cores(foreground & (nearest == c))]
    # Remove cores that are only the rim of a larger object in the same group.
    largest: Counter[int] = Counter()
    for core in cores:
        group = int(groups[core][0])
        largest[group] = max(largest[group], int(core.sum()))
    cores = [core for core in cores if core.sum() >= _MIN_CORE_SHARE * largest[int(groups[core][0])]]
    return zip(cores, _shared_out(cores, foreground), strict=True)


def _cores(mask: np.ndarray) -> list[np.ndarray]:
    """The eroded part of each connected component of a mask, where enough of it remains."""
    inner, pieces = _eroded(mask), label(mask)
    found = [inner & (pieces == number) for number in np.unique(pieces[inner])]
    return [core for core in found if core.sum() >= _MIN_CORE]


def _shared_out(cores: Sequence[np.ndarray], foreground: np.ndarray) -> list[np.ndarray]:
    """Grows every core step by step through the foreground until the cores meet; returns one mask per core."""
    owner = np.zeros(foreground.shape, dtype=np.int32)
    for number, core in enumerate(cores, start=1):
        owner[core] = number
    while True:
        spread = np.where((owner == 0) & foreground, _neighbour_maximum(owner), owner)
        if np.array_equal(spread, owner):
            return [owner == number for number in range(1, len(cores) + 1)]
        owner = spread


def label(mask: np.ndarray) -> np.ndarray:
    """Labels the 8-connected components of a mask [H, W]: int32 [H, W], 0 outside of them."""
    numbers = np.where(mask, np.arange(1, mask.size + 1, dtype=np.int32).reshape(mask.shape), 0)
    while True:
        spread = np.where(mask, _neighbour_maximum(numbers), 0)
        if np.array_equal(spread, numbers):
            return numbers
        numbers = spread


def _neighbour_maximum(values: np.ndarray) -> np.ndarray:
    """The largest value of each 3 x 3 neighbourhood (a logical or, for booleans)."""
    rows = values.copy()  # slices are much faster than np.pad at this size
    np.maximum(rows[1:], values[:-1], out=rows[1:])
    np.maximum(rows[:-1], values[1:], out=rows[:-1])
    both = rows.copy()
    np.maximum(both[:, 1:], rows[:, :-1], out=both[:, 1:])
    np.maximum(both[:, :-1], rows[:, 1:], out=both[:, :-1])
    return both


def _eroded(mask: np.ndarray) -> np.ndarray:
    """The pixels whose whole 3 x 3 neighbourhood is in the mask (pixels outside the image are not)."""
    outside = np.pad(~mask, 1, constant_values=True)
    return ~_neighbour_maximum(outside)[1:-1, 1:-1]


def _recognise(pixels: np.ndarray, ground: np.ndarray, core: np.ndarray, region: np.ndarray) -> Detection | None:
    """The shape and colour of one object; None if it is not clearly one of the world's shapes and colours."""
    color = np.median(pixels[core], axis=0)
    distances = np.linalg.norm(_PALETTE - color, axis=-1)
    span = color - ground
    if distances.min() > _MAX_COLOR_DISTANCE or np.linalg.norm(span) <= _FOREGROUND:
        return None
    # How far each pixel is on the way from the ground's colour to the object's: the object's coverage of that pixel.
    alpha = _steeper((pixels - ground) @ span / (span @ span)) * _neighbour_maximum(region)
    box = _bounds(alpha > 0.5)
    if not _plausible(box):
        return None
    fits = ((_overlap(alpha, shape, near), shape, near) for shape in SHAPES for near in _boxes_near(box))
    score, shape, fit = max(fits)
    if score < _MIN_SCORE:
        return None
    return Detection(shape=shape, color=_NAMES[int(distances.argmin())], box=fit, score=score)


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box of a mask, empty for an empty one."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if rows.size else (0, 0, 0, 0)


def _plausible(box: tuple[int, int, int, int]) -> bool:
    short, long = sorted((box[2] - box[0], box[3] - box[1]))
    return short >= _MIN_SIDE and long <= min(_MAX_SIDE, _MAX_ASPECT * short)


def _boxes_near(box: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    """The box, and those one pixel larger on any sides: the tips of a shape cover less than half of their pixels."""
    x0, y0, x1, y1 = box
    return [
        (left, top, right, bottom)
        for left in (x0, max(x0 - 1, 0))
        for top in (y0, max(y0 - 1, 0))
        for right in (x1, min(x1 + 1, _SIDE))
        for bottom in (y1, min(y1 + 1, _SIDE))
    ]


def _steeper(covered: np.ndarray) -> np.ndarray:
    """Coverage with steeper edges, so that a blurred edge still matches a sharp one."""
    return np.clip((covered - 0.5) * _STEEPNESS + 0.5, 0, 1)


@functools.lru_cache(maxsize=8192)
def _template(shape: str, width: int, height: int) -> np.ndarray:
    return _steeper(coverage(shape, width, height))


def _overlap(alpha: np.ndarray, shape: str, box: tuple[int, int, int, int]) -> float:
    """Intersection over union of what the object covers (`alpha` [64, 64]) and a shape drawn in a box, both soft."""
    x0, y0, x1, y1 = box
    drawn, seen = _template(shape, x1 - x0, y1 - y0), alpha[y0:y1, x0:x1]
    shared = float(np.minimum(drawn, seen).sum())
    return shared / (float(drawn.sum()) + float(alpha.sum()) - shared)


def check(record: Mapping[str, Any], detections: Sequence[Detection]) -> Verdict:
    """Judges detections by the record of a scene (its `family`, `objects` and `relation`; see the data contract).

    The verdict is GenEval's, by the same function as in the suites `geneval` and `scenes`. Raises `DataError` for a
    family that is not of this world.
    """
    stated = clauses(record)
    verdict = geneval.check(stated, as_geneval(detections))
    objects = record["objects"]
    shapes = _too_few((o["shape"] for o in objects), (d.shape for d in detections))
    colors = _too_few((o["color"] for o in objects), (d.color for d in detections))
    return Verdict(
        correct=verdict.correct,
        reason=verdict.reason,
        shape_ok=not shapes,
        color_ok=not (colors and STATES_COLOR[record["family"]]),
        count_ok=len(detections) == len(objects),
        relation_ok=verdict.correct or not any("position" in clause for clause in stated["include"]),
    )


def as_geneval(detections: Iterable[Detection]) -> dict[str, list[geneval.Detected]]:
    """Detections by shape, in the format of GenEval's rules.

    The exact detector is sure of every shape that it reports. So its fits, which start at 0.72, become confidences
    above GenEval's thresholds (0.3, and 0.9 in counting).
    """
    found: dict[str, list[geneval.Detected]] = {}
    for one in detections:
        detected = geneval.Detected(box=one.box, score=SURE + (1 - SURE) * one.score, color=one.color)
        found.setdefault(one.shape, []).append(detected)
    return found


def clauses(scene: Mapping[str, Any]) -> dict[str, Any]:
    """What a scene's caption states, in GenEval's format: `tag`, `include` and, in counting, `exclude`.

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


def _too_few(wanted: Iterable[str], found: Iterable[str]) -> bool:
    """Whether anything is wanted more often than found."""
    return bool(Counter(wanted) - Counter(found))
