"""The learning rate as a function of the step: linear warm-up, then cosine decay. It has no state to restore.

A parameter group may have a learning rate of its own: the same schedule, scaled by a constant.
"""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from blip3o.config.training import OptimConfig
from blip3o.errors import ConfigError

_SCALE = "lr_scale"


def learning_rate(optim: OptimConfig, step: int) -> float:
    """Learning rate of optimizer step `step` (from 0); reaches `min_lr` at the last step."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    span = max(optim.steps - 1 - optim.warmup_steps, 1)
    progress = (step - optim.warmup_steps) / span
    return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def parameter_groups(optim: OptimConfig, trainable: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: one for each of `optim.groups`, and one for the remaining parameters.

    A parameter belongs to the first group that matches it. Raises `ConfigError` if a group gets no parameter.
    """
    remaining = dict(trainable)
    groups: list[dict[str, Any]] = []
    for group in optim.groups:
        names = [name for name in remaining if fnmatchcase(name, group.match)]
        if not names:
            raise ConfigError(
                f"optim.groups: '{group.match}' matches none of the {len(remaining)} trainable parameters that are "
                f"left (e.g. {next(iter(remaining), 'none')})"
            )
        scale = 1.0 if group.lr is None else group.lr / optim.lr
        decay = optim.weight_decay if group.weight_decay is None else group.weight_decay
        groups.append({"params": [remaining.pop(name) for name in names], "weight_decay": decay, _SCALE: scale})
    if remaining:
        groups.append({"params": list(remaining.values())})
    return groups


def set_learning_rates(groups: list[dict[str, Any]], optim: OptimConfig, step: int) -> None:
    """Sets the learning rate of each of the optimizer's groups for a step."""
    for group in groups:
        group["lr"] = learning_rate(optim, step) * group.get(_SCALE, 1.0)
