"""Random draws of a loss. They are functions of (seed, kind, draw key of the sample), not of the rank or the batch.

They are always made on the CPU, so that every device gets the same numbers. An objective names its draws as `Draw`s;
`with_draws` makes them ahead of the step, as columns of the batch, and `drawn` reads them there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip3o.rng import torch_generator


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a loss draws for each sample: noise of `shape`, a time, and whether to keep the condition.

    `kind` names the draw and keys its generator, with `seed`. A condition is dropped with probability `dropout`.
    """

    kind: str
    seed: int
    shape: tuple[int, ...]
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FlowDraws:
    """Random draws for one micro-batch: noise [B, …], uniform times [B], and whether to keep the condition [B]."""

    noise: Tensor
    uniform: Tensor
    keep: Tensor


def flow_draws(keys_B: Tensor, *, seed: int, kind: str, shape: tuple[int, ...], dropout: float) -> FlowDraws:
    """Draws for each sample from its own generator, keyed by (seed, kind, draw key), then moved to the keys' device."""
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


def with_draws(batch: dict[str, Tensor], draws: Sequence[Draw]) -> dict[str, Tensor]:
    """The batch with columns `KIND/noise` [B, …], `KIND/uniform` [B] and `KIND/keep` [B] of each draw it lacks."""
    made = dict(batch)
    for draw in draws:
        if f"{draw.kind}/noise" not in batch:
            keys, kind = batch["draw_key"], draw.kind
            values = flow_draws(keys, seed=draw.seed, kind=kind, shape=draw.shape, dropout=draw.dropout)
            made |= {f"{kind}/noise": values.noise, f"{kind}/uniform": values.uniform, f"{kind}/keep": values.keep}
    return made


def drawn(batch: dict[str, Tensor], kind: str) -> FlowDraws:
    """The draws of this kind in a batch that has them."""
    return FlowDraws(noise=batch[f"{kind}/noise"], uniform=batch[f"{kind}/uniform"], keep=batch[f"{kind}/keep"])
