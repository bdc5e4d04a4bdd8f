"""The stage of a recipe: its objective's task, parts and trainables, as the recipe changes them. It needs no torch.

`encoder` makes the features semantic (a small CLIP, for the laptop); `understand` teaches the backbone to
read images; `generate` trains queries and what predicts from them with the backbone frozen; `instruct` goes on with a
curated set; `joint` trains what `understand` and `generate` do, at once; `decoder` learns pixels. Which objective each
of them trains is in `blip3o.config.objectives`.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from blip3o.config.objectives import Task
from blip3o.config.recipe import Recipe
from blip3o.errors import ConfigError

if TYPE_CHECKING:  # decoding actors ask for tasks, and have no use for torch
    from torch import nn


ADAPTER = ".lora_"  # in the name of every parameter of an adapter (`blip3o.train.lora`)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`parts` are built; of their parameters, those whose names match one of the patterns `trainable` are trained.

    `reached` are the patterns of what the loss has gradients for.
    """

    task: Task
    parts: tuple[str, ...]
    trainable: tuple[str, ...]
    reached: tuple[str, ...]


def stage_of(recipe: Recipe) -> Stage:
    """What the recipe's objective says, and what `stage.trainable`, `stage.lora` and `data.features` make of it.

    Where the features come to the trainer from elsewhere, it has no encoder. `stage.trainable` overrules the patterns;
    with `stage.lora`, the backbone's own parameters do not train.
    """
    objective, trainable, parts = recipe.objective, recipe.objective.trainable, recipe.objective.parts
    if recipe.stage.trainable:
        trainable = recipe.stage.trainable
    elif recipe.stage.lora is not None:
        trainable = tuple(pattern for pattern in trainable if pattern != "backbone.*")
    if recipe.data.features != "online":
        parts = tuple(part for part in parts if part != "encoder")
    return Stage(
        task=objective.task, parts=parts, trainable=trainable, reached=objective.reached or objective.trainable
    )


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
        beyond = [name for name in matched if not _matches(name, stage.reached)]
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
