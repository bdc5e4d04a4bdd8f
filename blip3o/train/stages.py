"""The stages of the recipe as data: which parts exist, which parameters train, what a sample becomes.

`encoder` makes the features semantic (a small CLIP, for the laptop); `understand` teaches the backbone to
read images; `generate` trains queries and DiT (or what the objective has in its place) with the backbone
frozen; `instruct` goes on with a curated set; `joint` trains what `understand` and `generate` do, at once;
`decoder` learns pixels.
"""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from blip3o.config.model import Objective
from blip3o.config.recipe import Recipe
from blip3o.config.training import StageName
from blip3o.data.batches import Task
from blip3o.errors import ConfigError

if TYPE_CHECKING:  # decoding actors read this table, and have no use for torch
    from torch import nn


ADAPTER = ".lora_"  # in the name of every parameter of an adapter (`blip3o.train.lora`)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`parts` are built; of their parameters, those whose names match one of the patterns `trainable` are trained.

    `reached` are the patterns of what the loss has gradients for; `trainable` if there are none.
    """

    task: Task
    parts: tuple[str, ...]
    trainable: tuple[str, ...]
    reached: tuple[str, ...] = ()


_GENERATE: dict[Objective, Stage] = {
    "clip_flow": Stage(
        task=Task.DRAW,
        parts=("encoder", "latent_scale", "backbone", "queries", "dit"),
        trainable=("queries", "dit.*"),
        reached=("backbone.*", "queries", "dit.*"),
    ),
    "clip_mse": Stage(
        task=Task.DRAW,
        parts=("encoder", "latent_scale", "backbone", "queries", "head"),
        trainable=("queries", "head.*"),
        reached=("backbone.*", "queries", "head.*"),
    ),
    "vae_flow": Stage(
        task=Task.DRAW_PIXELS,
        parts=("decoder", "latent_scale", "backbone", "queries", "dit"),
        trainable=("queries", "dit.*"),
        reached=("backbone.*", "queries", "dit.*"),
    ),
}
_JOINT_TASK = {Task.DRAW: Task.JOINT, Task.DRAW_PIXELS: Task.JOINT_PIXELS}
_JOINT: dict[Objective, Stage] = {
    objective: replace(stage, task=_JOINT_TASK[stage.task], trainable=stage.reached)
    for objective, stage in _GENERATE.items()
}

_DECODER: dict[str, Stage] = {
    "pixel": Stage(task=Task.PIXELS, parts=("encoder", "coarse", "decoder"), trainable=("coarse.*", "decoder.*")),
    "sdxl": Stage(task=Task.PIXELS, parts=("encoder", "decoder"), trainable=("decoder.unet.*",)),
    "sana": Stage(
        task=Task.PIXELS,
        parts=("encoder", "decoder"),
        trainable=("decoder.connector.*", "decoder.transformer.*"),
    ),
}

STAGES: dict[StageName, Stage] = {
    "encoder": Stage(
        task=Task.CONTRAST,
        parts=("encoder", "contrastive", "coarse"),
        trainable=("encoder.*", "contrastive.*", "coarse.*"),
    ),
    "understand": Stage(task=Task.CHAT, parts=("backbone",), trainable=("backbone.*",)),
    "generate": _GENERATE["clip_flow"],
    "instruct": _GENERATE["clip_flow"],
    "joint": _JOINT["clip_flow"],
    "decoder": _DECODER["pixel"],
}


def stage_of(recipe: Recipe) -> Stage:
    """The stage of a recipe: that of `STAGES`, or what its objective or its kind of decoder has in its place.

    Where the features come to the trainer from elsewhere, it has no encoder. `stage.trainable` overrules the patterns;
    with `stage.lora`, the backbone's own parameters do not train.
    """
    name = recipe.stage.name
    stage = STAGES[name]
    if name in ("generate", "instruct"):
        stage = _GENERATE[recipe.model.objective]
    elif name == "joint":
        stage = _JOINT[recipe.model.objective]
    elif name == "decoder":
        stage = _DECODER[recipe.model.decoder.kind]
    if recipe.stage.trainable:
        stage = replace(stage, trainable=recipe.stage.trainable, reached=stage.reached or stage.trainable)
    elif recipe.stage.lora is not None:
        adapted = tuple(pattern for pattern in stage.trainable if pattern != "backbone.*")
        stage = replace(stage, trainable=adapted, reached=stage.reached or stage.trainable)
    if recipe.data.features == "online":
        return stage
    return replace(stage, parts=tuple(part for part in stage.parts if part != "encoder"))


def freeze(model: "nn.Module", stage: Stage) -> list[str]:
    """Sets `requires_grad` of every parameter by the stage and returns the names of the trainable ones.

    The adapters of `stage.lora`, if the model has them, train too.

    Raises `ConfigError` if a pattern matches nothing, or something that the stage's loss has no gradient for.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in stage.trainable:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            raise ConfigError(f"stage trains '{pattern}', but the model has no such parameter (e.g. {names[-1]})")
        beyond = [name for name in matched if not _matches(name, stage.reached or stage.trainable)]
        if beyond:
            raise ConfigError(
                f"stage.trainable '{pattern}' matches {beyond[0]}, which the stage's loss does not reach: it reaches "
                f"{', '.join(stage.reached)}"
            )
    trainable = [name for name in names if _matches(name, stage.trainable) or ADAPTER in name]
    chosen = set(trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return trainable


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
