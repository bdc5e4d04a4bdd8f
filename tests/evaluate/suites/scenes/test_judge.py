"""The judge sees what is drawn, also blurred, noisy or at other sizes, sees nothing where nothing is, and is strict."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from blip3o.data.sets import scenes
from blip3o.data.sets.scenes_draw import render
from blip3o.data.sets.scenes_world import COLORS, FAMILIES, GROUNDS, SHAPES, Scene, SceneObject
from blip3o.errors import DataError
from blip3o.evaluate.suites.scenes.judge import Detection, check, detect, label
from blip3o.rng import numpy_generator


def composed(number: int, *, size: int = 64) -> list[Scene]:
    """Scenes of both splits and all families, moved off their places and with smaller objects: a model may draw any."""
    return [
        moved(scenes.compose(i, split=("train", "heldout")[i // 6 % 2], seed=11, size=size), i) for i in range(number)
    ]


def moved(scene: Scene, index: int) -> Scene:
    """The scene with all its objects moved alike, up to 2 pixels of 64, and all smaller by up to as many."""
    most, rng = scene.size // 32, numpy_generator("moved", index)
    x, y = (int(v) for v in rng.integers(-most, most, size=2, endpoint=True))
    less = int(rng.integers(most, endpoint=True))
    boxes = [(o.box[0] + x, o.box[1] + y, o.box[2] + x - less, o.box[3] + y - less) for o in scene.objects]
    return replace(scene, objects=tuple(replace(o, box=box) for o, box in zip(scene.objects, boxes, strict=True)))


def record_of(scene: Scene) -> dict:
    objects = [{"shape": o.shape, "color": o.color, "box": list(o.box)} for o in scene.objects]
    relation = {"relation": {"subject": 0, "relation": scene.relation, "object": 1}} if scene.relation else {}
    return {"family": scene.family, "objects": objects, **relation}


def exact(scene: Scene, found: list[Detection], *, tolerance: float) -> bool:
    """Whether the detections are the scene's objects, one for one, with boxes up to `tolerance` pixels."""
    left = list(scene.objects)
    for d in found:
        same = [
            o
            for o in left
            if (o.shape, o.color) == (d.shape, d.color) and np.abs(np.subtract(o.box, d.box)).max() <= tolerance
        ]
        if not same:
            return False
        left.remove(same[0])
    return not left


def test_drawn_scenes_are_recognised():
    drawn = composed(1000)
    found = [detect(render(scene)) for scene in drawn]
    right = [exact(s, f, tolerance=1) and check(record_of(s), f).correct for s, f in zip(drawn, found, strict=True)]
    assert np.mean(right) >= 0.995
    for family in FAMILIES:
        assert np.mean([r for r, s in zip(right, drawn, strict=True) if s.family == family]) >= 0.99, family


@pytest.mark.parametrize(("blur", "noise"), [(0.7, 0), (0, 8), (0.7, 8)])
def test_mild_blur_and_noise_are_seen_through(blur, noise):
    right = []
    for index, scene in enumerate(composed(200)):
        image = render(scene).filter(ImageFilter.GaussianBlur(blur))
        grain = numpy_generator("test", index).normal(0, noise, (64, 64, 3))
        noisy = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
        right.append(check(record_of(scene), detect(noisy)).correct)
    assert np.mean(right) >= 0.95


@pytest.mark.parametrize("size", [48, 96, 160])
def test_other_sizes_are_recognised_with_boxes_in_their_own_pixels(size):
    drawn = composed(60, size=size)
    right = [exact(scene, detect(render(scene)), tolerance=2 * size / 64) for scene in drawn]
    assert np.mean(right) >= 0.98


def test_touching_objects_of_two_colours_are_told_apart():
    for shape in SHAPES:
        for a, b in (("red", "blue"), ("orange", "yellow")):
            pair = (
                SceneObject(shape=shape, color=a, box=(6, 20, 28, 42)),
                SceneObject(shape="square", color=b, box=(28, 18, 54, 44)),
            )
            scene = Scene(family="two_object", ground="white", objects=pair, relation=None, size=64)
            # The tip of a star may fall to the neighbour, whose box then reaches 3 pixels out.
            assert exact(scene, detect(render(scene)), tolerance=3), (shape, a, b)


def mosaic(tiles: int, index: int) -> np.ndarray:
    """Random tiles of the world's own colours, smoothly blended."""
    palette = np.array([*COLORS.values(), *GROUNDS.values()], dtype=np.uint8)
    drawn = palette[numpy_generator("mosaic", tiles, index).integers(len(palette), size=(tiles, tiles))]
    return np.asarray(Image.fromarray(drawn).resize((64, 64), Image.Resampling.BICUBIC))


def test_nothing_is_seen_in_noise_mosaics_and_empty_grounds():
    pictures = [mosaic(tiles, index) for tiles in (5, 8, 64) for index in range(20)]
    pictures += [np.full((64, 64, 3), ground, dtype=np.uint8) for ground in GROUNDS.values()]
    assert [detect(picture) for picture in pictures] == [[]] * len(pictures)


def test_other_things_than_the_worlds_shapes_and_colours_are_not_seen():
    picture = np.full((64, 64, 3), GROUNDS["white"], dtype=np.uint8)
    bar, speck, brown = (picture.copy() for _ in range(3))
    bar[30:38, 8:56] = COLORS["red"]
    speck[30:34, 30:34] = COLORS["red"]
    brown[20:40, 20:40] = (110, 80, 60)
    assert detect(bar) == detect(speck) == detect(brown) == []
    picture[20:40, 20:40] = COLORS["red"]
    assert [(d.shape, d.color, d.box) for d in detect(picture)] == [("square", "red", (20, 20, 40, 40))]


def test_pictures_judged_by_the_captions_of_others_are_mostly_wrong():
    drawn = composed(120)
    found = [detect(render(scene)) for scene in drawn]
    assert np.mean([check(record_of(s), f).correct for s, f in zip(drawn, found[6:] + found[:6], strict=True)]) < 0.15


def test_pieces_are_connected_by_sides_and_corners():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]], dtype=bool)
    numbers = label(mask)
    assert numbers[0, 0] == numbers[1, 1] and numbers[0, 3] == numbers[1, 3] and numbers[3, 0] == numbers[3, 1]
    assert len(np.unique(numbers[mask])) == 4 and not numbers[~mask].any()


LEFT, RIGHT, TOP = (2.0, 22.0, 22.0, 42.0), (40.0, 22.0, 60.0, 42.0), (2.0, 0.0, 22.0, 20.0)


def seen(shape: str, color: str, box=LEFT, score: float = 0.9) -> Detection:
    return Detection(shape=shape, color=color, box=box, score=score)


def wanted(family: str, *pairs: tuple[str, str], relation: str | None = None) -> dict:
    record = {"family": family, "objects": [{"shape": s, "color": c, "box": [0, 0, 9, 9]} for s, c in pairs]}
    return record | ({"relation": {"subject": 0, "relation": relation, "object": 1}} if relation else {})


RED_CIRCLE, BLUE_STAR = ("circle", "red"), ("star", "blue")


@pytest.mark.parametrize(
    ("record", "found", "correct"),
    [
        (wanted("single_object", RED_CIRCLE), [seen("circle", "green")], True),  # the caption states no colour
        (wanted("single_object", RED_CIRCLE), [seen("square", "red")], False),
        (wanted("single_object", RED_CIRCLE), [seen("circle", "red"), seen("heart", "red", RIGHT)], True),
        (wanted("two_object", RED_CIRCLE, BLUE_STAR), [seen("star", "red"), seen("circle", "pink", RIGHT)], True),
        (wanted("two_object", RED_CIRCLE, BLUE_STAR), [seen("circle", "red")], False),
        (wanted("colors", RED_CIRCLE), [seen("circle", "red")], True),
        (wanted("colors", RED_CIRCLE), [seen("circle", "orange")], False),
        (wanted("counting", BLUE_STAR, BLUE_STAR), [seen("star", "blue"), seen("star", "blue", RIGHT)], True),
        (wanted("counting", BLUE_STAR, BLUE_STAR), [seen("star", "blue")], False),
        (wanted("counting", BLUE_STAR, BLUE_STAR), [seen("star", "blue"), seen("star", "red", RIGHT)], False),
        (wanted("counting", BLUE_STAR, BLUE_STAR), [seen("star", "blue", b) for b in (LEFT, RIGHT, TOP)], False),
        (wanted("color_attr", RED_CIRCLE, BLUE_STAR), [seen("star", "blue"), seen("circle", "red", RIGHT)], True),
        (wanted("color_attr", RED_CIRCLE, BLUE_STAR), [seen("star", "red"), seen("circle", "blue", RIGHT)], False),
        (wanted("colors", RED_CIRCLE), [], False),
    ],
)
def test_families_ask_for_what_their_captions_state(record, found, correct):
    verdict = check(record, found)
    assert verdict.correct == correct and bool(verdict.reason) != correct


@pytest.mark.parametrize(
    ("relation", "a", "b", "correct"),
    [
        ("left of", LEFT, RIGHT, True),
        ("left of", RIGHT, LEFT, False),
        ("right of", RIGHT, LEFT, True),
        ("above", TOP, LEFT, True),
        ("below", TOP, LEFT, False),
        ("above", LEFT, RIGHT, False),
        ("left of", TOP, RIGHT, True),  # 38 to the left and 22 up: 34 / 43.9 is more than a half,
        ("above", TOP, RIGHT, False),  # and 18 / 43.9 is less
    ],
)
def test_the_relation_must_hold(relation, a, b, correct):
    record = wanted("position", RED_CIRCLE, BLUE_STAR, relation=relation)
    verdict = check(record, [seen(*RED_CIRCLE, a), seen(*BLUE_STAR, b)])
    assert (verdict.correct, verdict.relation_ok) == (correct, correct)


def test_the_relation_is_judged_between_the_best_of_each_description():
    record = wanted("position", RED_CIRCLE, BLUE_STAR, relation="left of")
    star = seen(*BLUE_STAR, (24.0, 22.0, 38.0, 36.0))
    good, bad = seen(*RED_CIRCLE, LEFT, score=0.95), seen(*RED_CIRCLE, RIGHT, score=0.9)
    assert check(record, [bad, star, good]).correct
    worse = seen(*RED_CIRCLE, LEFT, score=0.85)
    assert not check(record, [bad, star, worse]).correct
    missing = check(record, [good])
    assert not missing.relation_ok and "expected 1 of star, found 0" in missing.reason


def test_the_parts_of_a_verdict_tell_what_went_wrong():
    record = wanted("color_attr", RED_CIRCLE, BLUE_STAR)
    swapped = check(record, [seen("circle", "blue"), seen("star", "red", RIGHT)])
    assert (swapped.correct, swapped.shape_ok, swapped.color_ok, swapped.count_ok) == (False, True, True, True)
    recoloured = check(record, [seen("circle", "red"), seen("star", "pink", RIGHT)])
    assert (recoloured.shape_ok, recoloured.color_ok) == (True, False)
    reshaped = check(record, [seen("circle", "red"), seen("heart", "blue", RIGHT)])
    assert (reshaped.shape_ok, reshaped.color_ok, reshaped.count_ok) == (False, True, True)
    surplus = check(record, [seen("circle", "red"), seen("star", "blue", RIGHT), seen("heart", "red", TOP)])
    assert (surplus.correct, surplus.count_ok) == (True, False)


def test_a_family_of_another_world_is_refused():
    with pytest.raises(DataError, match="unknown family 'text'"):
        check(wanted("text", RED_CIRCLE), [])
