"""The preflight check of the ranks: whether the workers start, reach each other, and read the same weights."""

import hashlib
from collections.abc import Iterator
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer

from blip3o import storage
from blip3o.config.load import build_recipe
from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.recipe import Recipe
from blip3o.device import collective_backend, select
from blip3o.runs.paths import final_uri, fit_uri
from blip3o.runs.results import read_description
from blip3o.train.preflight.checks import Check, verdict
from jobs.common import join_ray
from jobs.training.resources import scaling_config

RANKS = "preflight-ranks"


def rank_check(pipeline: TrainingPipeline) -> Check:
    """Starts the workers, sums a one from each of them, and compares the initial weights that each one finds."""
    join_ray()
    recipe, name = pipeline.stages[0], f"{pipeline.name}-{RANKS}"
    filesystem, path = storage.resolve(recipe.run.storage)
    result = TorchTrainer(
        _rank,
        train_loop_config={"recipes": [stage.model_dump(mode="json") for stage in pipeline.stages]},
        torch_config=TorchConfig(backend=collective_backend(recipe.parallel.device)),
        scaling_config=scaling_config(recipe.parallel, max_workers=recipe.parallel.max_workers),
        run_config=ray.train.RunConfig(name=name, storage_path=path, storage_filesystem=filesystem),
    ).fit()
    storage.delete(fit_uri(recipe.run.storage, name))
    seen = result.metrics or {}
    lowest, highest = seen.get("lowest"), seen.get("highest")
    return verdict(
        "ranks",
        good=seen.get("sum") == seen.get("workers") and lowest == highest,
        detail=f"{seen.get('sum')} of {seen.get('workers')} workers joined a sum, weights to start from {lowest} to "
        f"{highest}",
        fix="the workers' network or storage differs: compare their environments",
    )


def _rank(task: dict[str, Any]) -> None:
    """Runs in each worker."""
    recipes = [build_recipe(tree) for tree in task["recipes"]]
    device = select(recipes[0].parallel.device, local_rank=ray.train.get_context().get_local_rank())
    seen = hashlib.sha256(" ".join(_start(recipes)).encode()).digest()
    number = float(int.from_bytes(seen[:6], "big"))  # 48 bits: exact in fp64
    total, lowest, highest = (
        torch.tensor([value], dtype=torch.float64, device=device) for value in (1, number, number)
    )
    dist.all_reduce(total)
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    seen_by_all = {"sum": total.item(), "lowest": lowest.item(), "highest": highest.item()}
    ray.train.report({**seen_by_all, "workers": dist.get_world_size()})


def _start(recipes: list[Recipe]) -> Iterator[str]:
    """For each run that a stage starts from: its sha256, or a note that it has not finished."""
    for recipe in recipes:
        for run in recipe.stage.start_from:
            description = read_description(final_uri(recipe.run.storage, run))
            yield description["sha256"] if description else f"{run} has not finished"
