"""How many images of scenes show exactly what their caption says, by the exact judge of the closed world.

The same judge scores four sets of images: the model's drawings; the true features through the decoder (the best that
the decoder allows); the true images (the judge's own reliability); and the drawings against other captions (chance).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from blip3o.data.sets.scenes_world import STATES_COLOR
from blip3o.evaluate.metrics.retrieval import derangement
from blip3o.evaluate.suites.scenes.judge import Verdict, check, detect
from blip3o.rng import numpy_generator

Record = Mapping[str, Any]


def is_scene(record: Record) -> bool:
    """Whether a sample's record describes a scene of the closed world."""
    return record.get("source") == "scenes"


def verdicts(records: Sequence[Record], images: Sequence[Image.Image]) -> list[Verdict]:
    """The verdict on each image by the record of its scene."""
    return [check(record, detect(image)) for record, image in zip(records, images, strict=True)]


def score(
    records: Sequence[Record],
    *,
    drawn: Sequence[Image.Image],
    decoded: Sequence[Image.Image],
    true: Sequence[Image.Image],
    seed: int,
) -> dict[str, Any]:
    """The scores as they go into evaluation.json: shares of the n pictures, and of each family's.

    `all_correct`: everything stated is there; its parts are `shape`, `count`, `color` (over the `n_color` captions that
    state one) and `relation` (over `n_relation`; None where there are none). `upper_bound`, `judge` and `shuffled` are
    `all_correct` of decoded true features, of the true pictures, and of the drawings against other captions. Raises
    `DataError` below 2 scenes.
    """
    found = [detect(image) for image in drawn]
    results = [check(record, detections) for record, detections in zip(records, found, strict=True)]
    others = derangement(len(records), numpy_generator(seed, "evaluate", "shuffled", "scenes"))
    shuffled = [check(records[other], detections) for other, detections in zip(others, found, strict=True)]
    families = sorted({record["family"] for record in records})
    return {
        "all_correct": _share([verdict.correct for verdict in results]),
        **_parts(records, results),
        "upper_bound": _share([verdict.correct for verdict in verdicts(records, decoded)]),
        "judge": _share([verdict.correct for verdict in verdicts(records, true)]),
        "shuffled": _share([verdict.correct for verdict in shuffled]),
        "n": len(records),
        "families": {family: _family(family, records, results) for family in families},
    }


def _parts(records: Sequence[Record], results: Sequence[Verdict]) -> dict[str, Any]:
    pairs = list(zip(records, results, strict=True))
    colors = [verdict.color_ok for record, verdict in pairs if STATES_COLOR[record["family"]]]
    relations = [verdict.relation_ok for record, verdict in pairs if record.get("relation")]
    return {
        "shape": _share([verdict.shape_ok for verdict in results]),
        "count": _share([verdict.count_ok for verdict in results]),
        "color": _share(colors),
        "n_color": len(colors),
        "relation": _share(relations),
        "n_relation": len(relations),
    }


def _family(family: str, records: Sequence[Record], results: Sequence[Verdict]) -> dict[str, Any]:
    members = [verdict.correct for record, verdict in zip(records, results, strict=True) if record["family"] == family]
    return {"all_correct": _share(members), "n": len(members)}


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
