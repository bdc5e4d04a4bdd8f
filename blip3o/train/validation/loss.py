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
from blip3o.model.flow import interpolate, training_sigma, velocity_target
from blip3o.runs.paths import held_out_name
from blip3o.train.loop import to_batch
from blip3o.train.objectives import Batch, StageModule, flow_draws, split_tasks

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
        found = module.counts(batch)
        terms = module(batch) if found.keys() != {"flow"} else {}
        if found.get("flow"):  # of stage joint, a batch may have nothing to draw
            drawn = split_tasks(batch)[1] if "draws" in batch else batch
            terms["flow"] = flow_bins(recipe, module, drawn)
            found["flow"] //= recipe.stage.noise_draws
        for name, value in terms.items():
            sums[name] = sums.get(name, torch.zeros(())) + value.double().cpu()
            counts[name] = counts.get(name, 0) + found[name]
    return _figures(module, {name: value / counts[name] for name, value in sums.items() if counts[name]})


def _figures(module: StageModule, means: dict[str, Tensor]) -> dict[str, float]:
    figures = {PREFIX + name: float(value.mean()) for name, value in means.items()}
    total = sum(module.weights.get(name, 1.0) * float(value.mean()) for name, value in means.items())
    bins = means.get("flow", torch.empty(0)).tolist()
    edges = [f"{number / len(bins):g}" for number in range(len(bins) + 1)] if bins else []
    named = {f"{PREFIX}flow/{edges[it]}-{edges[it + 1]}": value for it, value in enumerate(bins)}
    return {**figures, f"{PREFIX}loss": total, **named}


def flow_bins(recipe: Recipe, module: StageModule, batch: Batch) -> Tensor:
    """Summed squared error of the velocity in each of `evaluate.sigma_bins` bins of σ, from low to high, [bins].

    Each sample has one noise, and one place within the bins, by its draw key and `evaluate.seed`.
    """
    model, bins = module.model, recipe.evaluate.sigma_bins
    data, states = module.target_and_states(batch)
    condition = model.dit.condition(states)
    draws = flow_draws(
        batch["draw_key"], seed=recipe.evaluate.seed, kind="validation", shape=model.latent_shape, dropout=0.0
    )
    target = velocity_target(data, draws.noise)
    errors = []
    for number in range(bins):
        sigma = training_sigma((bins - 1 - number + draws.uniform) / bins)
        velocity = model.dit(interpolate(data, draws.noise, sigma), 1000 * sigma, condition)
        errors.append((velocity - target).float().square().sum())
    return torch.stack(errors)
