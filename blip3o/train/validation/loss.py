"""A checkpoint's loss on held-out data, always with the same samples, noise and times, so that values are comparable.

The flow loss is reported in bins of the noise level σ, since a single value hides what the model learns: details at low
σ, the content of the prompt at high σ. `validation/flow` is the mean over all bins: the unweighted loss at uniform σ,
which is comparable between runs that train with different densities.
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
    """The recipe for held-out samples: online features, the evaluation's seed, and a separate ledger."""
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
    """The number of micro-batches in a validation: those that fit into `evaluate.samples`, at least one."""
    return max(recipe.evaluate.samples // recipe.optim.micro_batch_size, 1)


@torch.no_grad()
def validate(
    recipe: Recipe, module: StageModule, batches: Iterable[dict[str, np.ndarray]], *, pad_id: int
) -> dict[str, float]:
    """The validation metrics of a stage's module over micro-batches of the stream; `recipe` comes from `held_out`.

    `validation/TERM` is the mean of each term of the stage's loss, `validation/loss` their weighted sum. For a flow,
    `validation/flow/LOW-HIGH` are its bins of σ.
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
    return _metrics(module, {name: value / counts[name] for name, value in sums.items() if counts[name]})


def _metrics(module: StageModule, means: dict[str, Tensor]) -> dict[str, float]:
    metrics = {PREFIX + name: float(value.mean()) for name, value in means.items()}
    total = sum(module.weights.get(name, 1.0) * float(value.mean()) for name, value in means.items())
    binned = {name: value.tolist() for name, value in means.items() if value.dim()}
    edges = {name: [f"{it / len(bins):g}" for it in range(len(bins) + 1)] for name, bins in binned.items()}
    named = {
        f"{PREFIX}{name}/{low}-{high}": value
        for name, bins in binned.items()
        for low, high, value in zip(edges[name], edges[name][1:], bins, strict=False)
    }
    return {**metrics, f"{PREFIX}loss": total, **named}
