"""A checkpoint's loss on held-out data, always with the same samples, noise and times: points of one curve.

A flow is judged in bins of the noise level σ, since one figure hides what it learns: at low σ details, at high σ what
the prompt asks for. `validation/flow` is the mean over all bins, which is the loss at uniform σ without weights, and
so comparable between runs that train with other densities.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from blip3o.config.recipe import Recipe
from blip3o.runs.paths import held_out_name
from blip3o.train.loop import to_batch
from blip3o.train.objectives import StageModule

PREFIX = "validation/"


def held_out(recipe: Recipe) -> Recipe:
    """The recipe of the held-out samples: no stored features, the evaluation's seed, and a ledger of their own."""
    data = recipe.data.model_copy(
        update={
            "sources": recipe.evaluate.sources,
            "features": "online",
            "feature_dtype": None,
            "group_by_length": False,
        }
    )
    run = recipe.run.model_copy(update={"name": held_out_name(recipe.run.name), "seed": recipe.evaluate.seed})
    return recipe.model_copy(update={"data": data, "run": run})


def num_micro_batches(recipe: Recipe) -> int:
    """Micro-batches of a validation: as many as hold `evaluate.samples`, at least one."""
    return max(recipe.evaluate.samples // recipe.optim.micro_batch_size, 1)


@torch.no_grad()
def validate(
    recipe: Recipe, module: StageModule, batches: Iterable[dict[str, np.ndarray]], *, pad_id: int
) -> dict[str, float]:
    """The figures of a stage's module over micro-batches as the stream gives them; `recipe` is that of `held_out`.

    `validation/TERM` is the mean of each term of the stage's loss; where a flow is trained, its bins are
    `validation/flow/LOW-HIGH`, of σ. `validation/loss` is the terms' weighted sum.
    """
    device = next(module.parameters()).device
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for arrays in batches:
        batch = to_batch(arrays, pad_id=pad_id, device=device)
        terms, found = module.held_out(batch)
        for name, value in terms.items():
            sums[name] = sums.get(name, torch.zeros(())) + value.double().cpu()
            counts[name] = counts.get(name, 0) + found[name]
    return _figures(module, {name: value / counts[name] for name, value in sums.items() if counts[name]})


def _figures(module: StageModule, means: dict[str, Tensor]) -> dict[str, float]:
    figures = {PREFIX + name: float(value.mean()) for name, value in means.items()}
    total = sum(module.weights.get(name, 1.0) * float(value.mean()) for name, value in means.items())
    binned = {name: value.tolist() for name, value in means.items() if value.dim()}
    edges = {name: [f"{it / len(bins):g}" for it in range(len(bins) + 1)] for name, bins in binned.items()}
    named = {
        f"{PREFIX}{name}/{low}-{high}": value
        for name, bins in binned.items()
        for low, high, value in zip(edges[name], edges[name][1:], bins, strict=False)
    }
    return {**figures, f"{PREFIX}loss": total, **named}
