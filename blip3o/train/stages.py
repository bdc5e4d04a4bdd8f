"""The stage of a recipe: its objective's task, parts and trainable parameters, with the recipe's overrides. No torch.

- `encoder` trains a small CLIP encoder, for runs on a laptop.
- `understand` teaches the backbone to read images.
- `generate` trains the queries and the head that predicts from them, with the backbone frozen.
- `instruct` continues `generate` on a curated data set.
- `joint` trains `understand` and `generate` at once.
- `decoder` trains the decoder from features to pixels.

`blip3o.config.objectives` lists the objective of each stage.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from blip3o.config.objectives import Task
from blip3o.config.recipe import Recipe
from blip3o.errors import ConfigError

if TYPE_CHECKING:  # actors that decode use this module without torch
    from torch import nn


ADAPTER = ".lora_"  # in the name of every parameter of an adapter (`blip3o.train.lora`)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The `parts` of the model that are built, and the patterns of parameter names that are `trainable`.

    `reached` are the patterns of parameters for which the loss has gradients.
    """

    task: Task
    parts: tuple[str, ...]
    trainable: tuple[str, ...]
    reached: tuple[str, ...]


def stage_of(recipe: Recipe) -> Stage:
    """The recipe's objective with the overrides `stage.trainable`, `stage.lora` and `data.features` applied.

    With cached or streamed features the trainer has no encoder. `stage.trainable` replaces the objective's patterns.
    With `stage.lora`, the backbone's own parameters are frozen.
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
    """Sets `requires_grad` of every parameter and returns the names of the trainable ones.

    The adapters of `stage.lora`, if the model has them, are trainable too. Raises `ConfigError` if a pattern matches
    nothing, or a parameter for which the stage's loss has no gradient.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in stage.trainable:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            raise ConfigError(f"stage trains '{pattern}', but the model has no such parameter (e.g. {names[-1]})")
        unreached = [name for name in matched if not _matches(name, stage.reached)]
        if unreached:
            raise ConfigError(
                f"stage.trainable '{pattern}' matches {unreached[0]}, which the stage's loss does not reach: it "
                f"reaches {', '.join(stage.reached)}"
            )
    trainable = [name for name in names if _matches(name, stage.trainable) or ADAPTER in name]
    chosen = set(trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return trainable


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
