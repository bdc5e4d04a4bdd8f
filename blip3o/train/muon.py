"""The optimizer of a stage: AdamW, or Muon for matrices and AdamW for all other parameters.

Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest matrix with orthonormal rows or columns, so
that every direction moves by the same amount. The scale of arXiv 2502.16982 gives its updates the size of AdamW's: one
learning rate and one weight decay serve both.
"""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from blip3o.config.training import OptimConfig
from blip3o.errors import ConfigError
from blip3o.train.schedule import parameter_groups

_MATRICES = "matrices"  # the key of a parameter group that says whether Muon updates it
_MOMENTUM = 0.95
_STEPS = 5
# Of the quintic polynomial a·x + b·x³ + c·x⁵, which takes every singular value in (0, 1] close to 1 in `_STEPS` steps.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ADAMW_RMS = 0.2  # the usual root mean square of AdamW's update, before the learning rate


def build_optimizer(
    optim: OptimConfig, trainable: Mapping[str, Tensor], *, lr: float, fused: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of the trainable parameters, by name, with the recipe's groups. `fused`: whether AdamW alone is.

    Raises `ConfigError` if a pattern of `optim.groups` or `optim.muon` matches nothing.
    """
    groups = parameter_groups(optim, trainable)
    if not optim.muon:
        options: dict[str, Any] = {"fused": True} if fused else {}
        return torch.optim.AdamW(groups, lr=lr, betas=optim.betas, weight_decay=optim.weight_decay, **options)
    matrices = _matrices(trainable, optim.muon)
    parts = [part for group in groups for part in _split(group, matrices)]
    return Muon(parts, lr=lr, betas=optim.betas, weight_decay=optim.weight_decay)


def _matrices(trainable: Mapping[str, Tensor], patterns: Sequence[str]) -> set[int]:
    """The ids of the two-dimensional parameters that match a pattern."""
    found: set[int] = set()
    for pattern in patterns:
        matches = {id(p) for name, p in trainable.items() if p.ndim == 2 and fnmatchcase(name, pattern)}
        if not matches:
            raise ConfigError(
                f"optim.muon: '{pattern}' matches no matrix among the {len(trainable)} trainable parameters "
                f"(e.g. {next((name for name, p in trainable.items() if p.ndim == 2), 'none has two dimensions')})"
            )
        found |= matches
    return found


def _split(group: dict[str, Any], matrices: set[int]) -> list[dict[str, Any]]:
    """A group as one for Muon and one for AdamW; those that are empty are left out."""
    parts: dict[bool, list[Tensor]] = {True: [], False: []}
    for parameter in group["params"]:
        parts[id(parameter) in matrices].append(parameter)
    return [{**group, "params": own, _MATRICES: of_muon} for of_muon, own in parts.items() if own]


class Muon(torch.optim.Optimizer):
    """Updates the groups with `matrices` true by Muon and the others by AdamW.

    The ranks of the process group, if there is one, must hold the same parameters and gradients. They share the work:
    each matrix is orthogonalized on one rank, and every rank gets the same update.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        # Most of what Muon leaves is small, and costs its number of calls.
        self._adamw = torch.optim.AdamW([torch.empty(0)], betas=betas, fused=True)
        super().__init__(list(groups), {**self._adamw.defaults, "lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; every parameter needs its gradient. `closure` is not supported."""
        groups = [group for group in self.param_groups if group[_MATRICES]]
        momenta = [self._momentum(parameter) for group in groups for parameter in group["params"]]
        updates = iter(_orthogonalize_together(momenta))
        for group in groups:
            for parameter in group["params"]:
                size = group["lr"] * _ADAMW_RMS * math.sqrt(max(parameter.shape))
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(next(updates), alpha=-size)
        # Loading a state replaces groups and state, so AdamW gets them at every step.
        self._adamw.param_groups = [group for group in self.param_groups if not group[_MATRICES]]
        self._adamw.state = self.state
        self._adamw.step()

    def _momentum(self, parameter: Tensor) -> Tensor:
        """Updates the mean of the gradients; returns Nesterov's look ahead of it."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient, momentum = parameter.grad, state["momentum"]
        assert gradient is not None
        momentum.lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(momentum, _MOMENTUM)


def _orthogonalize_together(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Every matrix orthogonalized, each on one rank, in batches of one shape: small ones cost their number of calls."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    flat = matrices[0].new_zeros(sum(matrix.numel() for matrix in matrices))
    sizes = [matrix.numel() for matrix in matrices]
    views = [part.view_as(matrix) for part, matrix in zip(flat.split(sizes), matrices, strict=True)]
    by_shape: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(index)
    for turn, members in enumerate(by_shape.values()):
        own = members[(rank + turn) % world :: world]
        if own:
            done = orthogonalize(torch.stack([matrices[index] for index in own]))
            for index, matrix in zip(own, done, strict=True):
                views[index].copy_(matrix)
    if world > 1:
        dist.all_reduce(flat)  # each matrix is on one rank; the others add zero
    return views


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices [N, rows, columns] → U·Vᵀ of their singular value decompositions U·S·Vᵀ, nearly.

    Newton-Schulz iteration: singular values end in about 0.7 to 1.2, which trains as well as 1 (Jordan et al. 2024). A
    matrix of zeros stays zero.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x if wide else x.mT
