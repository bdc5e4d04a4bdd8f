"""What lmms-eval calls for the task `blip3o_scenes`: `jobs.lmms` puts a copy beside the task, where it is sought."""

from typing import Any

from PIL import Image

from blip3o.data.images.decode import open_image
from blip3o.evaluate.metrics.understanding import normalise


def pictures(row: dict[str, Any]) -> list[Image.Image]:
    """The picture of a question."""
    return [open_image(row["image"])]


def question(row: dict[str, Any]) -> str:
    """Its words."""
    return row["question"]


def judged(row: dict[str, Any], replies: list[str]) -> dict[str, float]:
    """Whether the reply is the answer, as `blip3o evaluate` compares them."""
    return {"accuracy": float(normalise(replies[0]) == normalise(row["answer"]))}
