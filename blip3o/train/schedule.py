"""The learning rate as a function of the step: linear warm-up, then cosine. No state, so nothing to restore.

Groups of parameters may have rates of their own: the whole schedule times a constant.
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
    """The optimizer's groups: for each of `optim.groups` the parameters that it is the first to match, then the rest.

    Raises `ConfigError` if a group matches no trainable parameter that an earlier one has not taken.
    """
    rest = dict(trainable)
    made: list[dict[str, Any]] = []
    for group in optim.groups:
        names = [name for name in rest if fnmatchcase(name, group.match)]
        if not names:
            raise ConfigError(
                f"optim.groups: '{group.match}' matches none of the {len(rest)} trainable parameters that are left "
                f"(e.g. {next(iter(rest), 'none')})"
            )
        scale = 1.0 if group.lr is None else group.lr / optim.lr
        decay = optim.weight_decay if group.weight_decay is None else group.weight_decay
        made.append({"params": [rest.pop(name) for name in names], "weight_decay": decay, _SCALE: scale})
    if rest:
        made.append({"params": list(rest.values())})
    return made


def set_rates(groups: list[dict[str, Any]], optim: OptimConfig, step: int) -> None:
    """Gives each of the optimizer's groups its learning rate for a step."""
    for group in groups:
        group["lr"] = learning_rate(optim, step) * group.get(_SCALE, 1.0)
