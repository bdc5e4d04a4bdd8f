"""The scenes set: a closed world of 1-4 coloured shapes on a plain ground, in six families, drawn without limit.

Sample `index` of a split is a pure function of (seed, split, index, size). Training scenes never hold a held-out pair
or combination; every held-out scene holds one (`scenes_world.is_heldout`). Objects do not touch; boxes are recorded as
drawn.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from blip3o.data.sets import writer
from blip3o.data.sets.scenes_draw import png
from blip3o.data.sets.scenes_text import caption_questions, captions, full_caption, questions
from blip3o.data.sets.scenes_world import COLORS, FAMILIES, GROUNDS, SHAPES, Scene, SceneObject, is_heldout, relations
from blip3o.errors import DataError
from blip3o.rng import numpy_generator

EDITION = 3  # raised whenever samples change: a set of an earlier edition is refused
MIN_SIZE = 48  # below it the smallest shapes cannot be told apart
MAX_SIZE = 4096  # above it one picture takes gigabytes to draw
# Lengths in pixels of a picture of 64; other sizes are scaled from it. One object is in the middle, several are each in
# the middle of a quarter: a caption then leaves few layouts open, and a small model learns them in minutes on two
# cores. Captions name objects from left to right, unless a relation says otherwise: so the layout says which is which.
_REFERENCE_SIZE = 64
_SINGLE_SIDES = (32, 40, 48)
_SIDE = 24
_QUARTERS = ((16, 16), (16, 48), (48, 16), (48, 48))  # their middles, from left to right


def compose(index: int, *, split: str, seed: int = 0, size: int = 64) -> Scene:
    """Scene number `index` of a split (`train` or `heldout`), `size` pixels square; the families take turns."""
    rng = numpy_generator(seed, "scenes", split, index)
    family = FAMILIES[index % len(FAMILIES)]
    pairs = _pairs(rng, family, heldout=split == "heldout")
    ground = str(rng.choice(list(GROUNDS)))
    boxes = _layout(rng, len(pairs), size, related=family == "position")
    if family == "position" and rng.integers(2):
        boxes.reverse()
    objects = tuple(SceneObject(shape=s, color=c, box=box) for (s, c), box in zip(pairs, boxes, strict=True))
    relation = min(relations(boxes[0], boxes[1])) if family == "position" else None
    return Scene(family=family, ground=ground, objects=objects, relation=relation, size=size)


def _pairs(rng: np.random.Generator, family: str, *, heldout: bool) -> list[tuple[str, str]]:
    """(shape, colour) of each object, drawn until the composition belongs to the split asked for."""
    while True:
        if family == "counting":
            drawn = [(str(rng.choice(SHAPES)), str(rng.choice(list(COLORS))))] * int(rng.integers(2, 4, endpoint=True))
        else:
            number = 1 if family in ("single_object", "colors") else 2
            shapes = rng.choice(SHAPES, size=number, replace=False)
            colors = rng.choice(list(COLORS), size=number, replace=family != "color_attr")
            drawn = [(str(s), str(c)) for s, c in zip(shapes, colors, strict=True)]
        if is_heldout(drawn) == heldout:
            return drawn


def _layout(rng: np.random.Generator, number: int, size: int, *, related: bool) -> list[tuple[int, int, int, int]]:
    """Square boxes, one in the middle or each in its quarter, from left to right; if `related`, those of the first two
    stand in exactly one relation.
    """
    if number == 1:
        return [_box((_REFERENCE_SIZE // 2,) * 2, int(rng.choice(_SINGLE_SIDES)), size)]
    while True:
        quarters = sorted(rng.permutation(len(_QUARTERS))[:number])
        boxes = [_box(_QUARTERS[quarter], _SIDE, size) for quarter in quarters]
        if not related or len(relations(boxes[0], boxes[1])) == 1:
            return boxes


def _box(middle: tuple[int, int], side: int, size: int) -> tuple[int, int, int, int]:
    x, y = (round((centre - side // 2) * size / _REFERENCE_SIZE) for centre in middle)
    side = round(side * size / _REFERENCE_SIZE)
    return x, y, x + side, y + side


def sample(index: int, *, split: str, seed: int = 0, size: int = 64) -> writer.Sample:
    """Scene number `index` with its picture (PNG), captions and questions."""
    scene = compose(index, split=split, seed=seed, size=size)
    rng = numpy_generator(seed, "scenes", "qa", split, index)
    record: dict[str, Any] = {
        "source": "scenes",
        "concept": "+".join(sorted({f"{o.color} {o.shape}" for o in scene.objects})),
        "split": split,
        "captions": captions(scene),
        "qa": questions(scene, heldout=split == "heldout", rng=rng),
        "full_caption": full_caption(scene),
        "caption_qa": caption_questions(scene),
        "family": scene.family,
        "ground": scene.ground,
        "objects": [{"shape": o.shape, "color": o.color, "box": list(o.box)} for o in scene.objects],
    }
    if scene.relation:
        record["relation"] = {"subject": 0, "relation": scene.relation, "object": 1}
    return writer.Sample(key=f"{split}-{index:07d}", image=png(scene), ext="png", record=record)


def samples(*, train: int, heldout: int, size: int = 64, seed: int = 0) -> Iterator[writer.Sample]:
    """`train` training scenes, then `heldout` scenes of held-out compositions."""
    for split, number in (("train", train), ("heldout", heldout)):
        for index in range(number):
            yield sample(index, split=split, seed=seed, size=size)


def build_scenes(
    out: str,
    *,
    train: int,
    heldout: int,
    size: int = 64,
    seed: int = 0,
    samples_per_shard: int = 1000,
    on_progress: writer.Progress | None = None,
) -> writer.SetSummary:
    """Writes the set below the URI `out`, unless it is already there, complete and with the same settings.

    `train` and `heldout` are numbers of scenes, `size` the side in pixels;
    `on_progress(done, total)` after each sample. Raises `DataError` (impossible numbers, a set of other settings
    there) and `StorageError`.
    """
    if min(train, heldout) < 0 or train + heldout == 0 or not MIN_SIZE <= size <= MAX_SIZE:
        raise DataError(
            f"train={train}, heldout={heldout}, size={size}: need 1 scene at least, and {MIN_SIZE} to {MAX_SIZE} pixels"
        )
    settings: writer.Settings = {
        "set": "scenes",
        "edition": EDITION,
        "train": train,
        "heldout": heldout,
        "size": size,
        "seed": seed,
        "samples_per_shard": samples_per_shard,
    }
    there = writer.completed(out, settings)
    if there is not None:
        return there
    stream = samples(train=train, heldout=heldout, size=size, seed=seed)
    return writer.write_set(
        out,
        stream,
        settings=settings,
        total=train + heldout,
        samples_per_shard=samples_per_shard,
        on_progress=on_progress,
    )
