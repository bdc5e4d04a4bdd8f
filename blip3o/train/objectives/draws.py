"""Random draws of a loss. They are functions of (seed, kind, draw key of the sample), not of the rank or the batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from blip3o.rng import torch_generator


@dataclass(frozen=True, kw_only=True)
class FlowDraws:
    """Random draws for one micro-batch: noise [B, …], uniform times [B], and whether to keep the condition [B]."""

    noise: Tensor
    uniform: Tensor
    keep: Tensor


def flow_draws(keys_B: Tensor, *, seed: int, kind: str, shape: tuple[int, ...], dropout: float) -> FlowDraws:
    """Draws for each sample from its own generator, keyed by (seed, kind, draw key); always on the CPU."""
    noise, uniform = [], []
    for key in keys_B.tolist():
        generator = torch_generator(seed, kind, key)
        uniform.append(torch.rand(2, generator=generator))
        noise.append(torch.randn(shape, generator=generator))
    times = torch.stack(uniform)
    device = keys_B.device
    return FlowDraws(
        noise=torch.stack(noise).to(device), uniform=times[:, 0].to(device), keep=(times[:, 1] >= dropout).to(device)
    )
