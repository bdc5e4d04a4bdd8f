"""What lmms-eval calls for the task `blip3o_scenes`. `scenes_task` copies this file next to the task's YAML."""

from typing import Any

from PIL import Image

from blip3o.data.images.decode import open_image
from blip3o.data.text.normalise import normalise


def pictures(row: dict[str, Any]) -> list[Image.Image]:
    """The image of a question."""
    return [open_image(row["image"])]


def question(row: dict[str, Any]) -> str:
    """The text of a question."""
    return row["question"]


def judged(row: dict[str, Any], replies: list[str]) -> dict[str, float]:
    """Whether the reply is the answer, compared as `blip3o evaluate` does."""
    return {"accuracy": float(normalise(replies[0]) == normalise(row["answer"]))}
