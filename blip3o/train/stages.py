"""The stages of the recipe as data: which parts exist, which parameters train, what a sample becomes.

`encoder` makes the features semantic (a small CLIP, for the laptop); `understand` teaches the backbone to
read images; `generate` trains queries and DiT (or what the objective has in its place) with the backbone
frozen; `instruct` goes on with a curated set; `decoder` learns pixels.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from blip3o.config.model import Objective
from blip3o.config.recipe import Recipe
from blip3o.config.training import StageName
from blip3o.data.batches import Task
from blip3o.errors import ConfigError

if TYPE_CHECKING:  # decoding actors read this table, and have no use for torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`parts` are built; of their parameters, those whose names start with one of `trainable` are trained."""

    task: Task
    parts: tuple[str, ...]
    trainable: tuple[str, ...]


_GENERATE: dict[Objective, Stage] = {
    "clip_flow": Stage(
        task=Task.DRAW,
        parts=("encoder", "latent_scale", "backbone", "queries", "dit"),
        trainable=("queries", "dit."),
    ),
    "clip_mse": Stage(
        task=Task.DRAW,
        parts=("encoder", "latent_scale", "backbone", "queries", "head"),
        trainable=("queries", "head."),
    ),
    "vae_flow": Stage(
        task=Task.DRAW_PIXELS,
        parts=("decoder", "latent_scale", "backbone", "queries", "dit"),
        trainable=("queries", "dit."),
    ),
}

_DECODER: dict[str, Stage] = {
    "pixel": Stage(task=Task.PIXELS, parts=("encoder", "coarse", "decoder"), trainable=("coarse.", "decoder.")),
    "sdxl": Stage(task=Task.PIXELS, parts=("encoder", "decoder"), trainable=("decoder.unet.",)),
    "sana": Stage(
        task=Task.PIXELS,
        parts=("encoder", "decoder"),
        trainable=("decoder.connector.", "decoder.transformer."),
    ),
}

STAGES: dict[StageName, Stage] = {
    "encoder": Stage(
        task=Task.CONTRAST,
        parts=("encoder", "contrastive", "coarse"),
        trainable=("encoder.", "contrastive.", "coarse."),
    ),
    "understand": Stage(task=Task.CHAT, parts=("backbone",), trainable=("backbone.",)),
    "generate": _GENERATE["clip_flow"],
    "instruct": _GENERATE["clip_flow"],
    "decoder": _DECODER["pixel"],
}


def stage_of(recipe: Recipe) -> Stage:
    """The stage of a recipe: that of `STAGES`, or what its objective or its kind of decoder has in its place.

    Where the features come to the trainer from elsewhere, it has no encoder.
    """
    name = recipe.stage.name
    stage = STAGES[name]
    if name in ("generate", "instruct"):
        stage = _GENERATE[recipe.model.objective]
    elif name == "decoder":
        stage = _DECODER[recipe.model.decoder.kind]
    if recipe.data.features == "online":
        return stage
    return replace(stage, parts=tuple(part for part in stage.parts if part != "encoder"))


def freeze(model: "nn.Module", stage: Stage) -> list[str]:
    """Sets `requires_grad` of every parameter by the stage and returns the names of the trainable ones.

    Raises `ConfigError` if a pattern matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in stage.trainable:
        if not any(name.startswith(prefix) for name in names):
            raise ConfigError(f"stage trains '{prefix}*', but the model has no such parameter")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(stage.trainable))
    return [name for name in names if name.startswith(stage.trainable)]
