"""The learning rate as a function of the step: linear warm-up, then cosine. No state, so nothing to restore."""

import math

from blip3o.config.training import OptimConfig


def learning_rate(optim: OptimConfig, step: int) -> float:
    """Learning rate of optimizer step `step` (from 0); reaches `min_lr` at the last step."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    span = max(optim.steps - 1 - optim.warmup, 1)
    progress = (step - optim.warmup) / span
    return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * progress)) / 2
