"""Everything that can be known before the first step: `blip3o preflight RECIPE [--cluster 4x8xH100] [--ranks]`.

The recipe, memory and disk, storage and clocks, data, weights and features, and what the cluster offers. `--ranks`
starts the recipe's workers, adds a number over all of them, and compares what each reads of the weights to start from.
`blip3o train` makes the cheap ones of these checks by itself.
"""

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip3o.config.cluster import ClusterConfig, parse_cluster
from blip3o.config.pipeline import TrainingPipeline, load_pipeline
from blip3o.config.recipe import Recipe
from blip3o.device import collective_backend, gpus_per_worker
from blip3o.errors import ConfigError
from jobs.common import Cluster, DryRun, RecipeName, StageOverrides, dump_pipeline, entry_point, join_ray

if TYPE_CHECKING:
    from blip3o.train.preflight.checks import Check

RANKS = "preflight-ranks"
KIND = "accelerator_type:"  # how Ray names what a node's GPUs are


def planned(pipeline: TrainingPipeline, cluster: ClusterConfig | None) -> Iterator[tuple[str, "Check"]]:
    """(stage's run, check) of what needs neither store nor Ray: what `blip3o train --dry-run` prints."""
    from blip3o.train.preflight.checks import counted

    for recipe in pipeline.stages:
        for check in counted(recipe, cluster):
            yield recipe.run.name, check
    if cluster is not None:
        yield pipeline.name, of_resources(pipeline, cluster.total_cpus, cluster.total_gpus)


def require_planned(pipeline: TrainingPipeline) -> None:
    """The cheap checks, before workers start. Raises `ConfigError` that names what is wrong."""
    from blip3o.train.preflight.checks import of_recipe, of_store, require

    checks = [check for recipe in pipeline.stages for check in of_recipe(recipe)]
    require([*checks, *of_store(pipeline.stages[0].run.storage)])


def of_resources(pipeline: TrainingPipeline, cpus: float, gpus: float) -> "Check":
    """Whether so many CPUs and GPUs can hold the pipeline's workers, decoders and encoders."""
    from blip3o.train.preflight.checks import judged

    asked_cpus, asked_gpus = asked(pipeline)
    return judged(
        "resources",
        good=asked_cpus <= cpus and asked_gpus <= gpus,
        detail=f"{asked_cpus:g} CPUs and {asked_gpus:g} GPUs of {cpus:g} and {gpus:g}",
        fix="lower parallel.workers, set parallel.device=cpu, or take a larger cluster",
    )


def asked(pipeline: TrainingPipeline) -> tuple[float, float]:
    """Logical CPUs and GPUs that a pipeline's fit reserves with its fewest workers."""
    from jobs.training.fit import streams_features

    parallel = pipeline.stages[0].parallel
    encoders = parallel.encoder_actors if streams_features(pipeline) else 0
    cpus = parallel.min_workers * parallel.cpus_per_worker + parallel.data_actors * parallel.cpus_per_data_actor
    validated = [recipe.evaluate for recipe in pipeline.stages if recipe.evaluate.every is not None]
    cpus += encoders * parallel.cpus_per_encoder_actor + max((it.cpus for it in validated), default=0)
    devices = (
        parallel.min_workers
        + encoders * parallel.gpus_per_encoder_actor
        + max((it.gpus for it in validated), default=0)
    )
    gpus = devices * gpus_per_worker(parallel.device)
    return cpus, gpus


def preflight(
    pipeline: TrainingPipeline, cluster: ClusterConfig | None, *, ranks: bool
) -> Iterator[tuple[str, "Check"]]:
    """(stage's run or pipeline, check) of everything; with a pretended cluster, Ray is not asked."""
    from blip3o.train.preflight.checks import attempted, of_features, of_store
    from jobs.train import check_data, check_weights

    yield from planned(pipeline, cluster or ray_cluster())
    for uri in dict.fromkeys(recipe.run.storage for recipe in pipeline.stages):
        for check in of_store(uri):
            yield pipeline.name, check
    for recipe in pipeline.stages:
        yield recipe.run.name, attempted("data", partial(check_data, recipe))
        for check in of_features(recipe):
            yield recipe.run.name, check
    yield pipeline.name, attempted("weights", lambda: check_weights(pipeline))
    if ranks:
        yield pipeline.name, of_ranks(pipeline)


def ray_cluster() -> ClusterConfig:
    """The nodes that Ray has now, each as its smallest; the disk is what this node has free for temporary files."""
    import ray

    from blip3o.train.preflight.memory import GIB

    join_ray()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    with_gpus = [node for node in nodes if node.get("GPU")] or nodes
    kinds = {key.removeprefix(KIND) for node in with_gpus for key in node if key.startswith(KIND)}
    kind = next(iter(kinds)) if len(kinds) == 1 else None
    free = shutil.disk_usage(tempfile.gettempdir()).free
    return ClusterConfig(
        nodes=len(with_gpus),
        gpus=int(min(node.get("GPU", 0) for node in with_gpus)),
        gpu=kind,
        cpus=sum(node["CPU"] for node in nodes) / len(with_gpus),
        memory_gib=min(node["memory"] for node in with_gpus) / GIB,
        disk_gib=free / GIB,
    )


def of_ranks(pipeline: TrainingPipeline) -> "Check":
    """Starts the workers, adds a one of each over all, and compares the weights that each finds to start from."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from blip3o import storage
    from blip3o.train.preflight.checks import judged
    from jobs.training.fit import scaling

    join_ray()
    recipe = pipeline.stages[0]
    filesystem, path = storage.resolve(recipe.run.storage)
    result = TorchTrainer(
        _rank,
        train_loop_config={"recipes": [stage.model_dump(mode="json") for stage in pipeline.stages]},
        torch_config=TorchConfig(backend=collective_backend(recipe.parallel.device)),
        scaling_config=scaling(recipe.parallel, most=recipe.parallel.max_workers),
        run_config=ray.train.RunConfig(
            name=f"{pipeline.name}-{RANKS}", storage_path=path, storage_filesystem=filesystem
        ),
    ).fit()
    storage.delete(storage.join(recipe.run.storage, f"{pipeline.name}-{RANKS}"))
    seen = result.metrics or {}
    lowest, highest = seen.get("lowest"), seen.get("highest")
    return judged(
        "ranks",
        good=seen.get("sum") == seen.get("workers") and lowest == highest,
        detail=f"{seen.get('sum')} of {seen.get('workers')} workers joined a sum, weights to start from {lowest} to "
        f"{highest}",
        fix="the workers' network or storage differs: compare their environments",
    )


def _rank(task: dict[str, Any]) -> None:
    """What runs in each worker of `of_ranks`."""
    import ray.train
    import torch
    import torch.distributed as dist

    from blip3o.config.load import build_recipe
    from blip3o.device import select

    recipes = [build_recipe(tree) for tree in task["recipes"]]
    device = select(recipes[0].parallel.device, local_rank=ray.train.get_context().get_local_rank())
    seen = hashlib.sha256(" ".join(_start(recipes)).encode()).digest()
    number = float(int.from_bytes(seen[:6], "big"))  # exact in fp64
    total, lowest, highest = (
        torch.tensor([value], dtype=torch.float64, device=device) for value in (1, number, number)
    )
    dist.all_reduce(total)
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    seen_by_all = {"sum": total.item(), "lowest": lowest.item(), "highest": highest.item()}
    ray.train.report({**seen_by_all, "workers": dist.get_world_size()})


def _start(recipes: list[Recipe]) -> Iterator[str]:
    """The sha256 of each finished run that a stage starts from, or that it is not there yet."""
    from blip3o.train.weights import final_uri, read_description

    for recipe in recipes:
        for run in recipe.stage.start_from:
            description = read_description(final_uri(recipe.run.storage, run))
            yield description["sha256"] if description else f"{run} has not finished"


def tell(found: Iterator[tuple[str, "Check"]], *, mark: str = "") -> "list[Check]":
    """Prints checks as they come, a line each; returns them."""
    checks = []
    for name, check in found:
        print(f"{mark}{name}: {check}")
        checks.append(check)
    return checks


def command(
    recipe: RecipeName,
    *,
    overrides: StageOverrides,
    cluster: Cluster = None,
    ranks: Annotated[bool, typer.Option("--ranks", help="Start the workers, and see that they agree.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Check everything that can be known of a run before its first step, and say what is wrong."""
    pretended = parse_cluster(cluster) if cluster else None
    if ranks and pretended:
        raise ConfigError(f"--ranks starts workers, and --cluster {cluster} is pretended: leave one of them out")
    pipeline = load_pipeline(recipe, overrides)
    if dry_run:
        print(dump_pipeline(pipeline))
        return
    from blip3o.train.preflight.checks import require  # 2 s: torch

    require(tell(preflight(pipeline, pretended, ranks=ranks)))


main = entry_point("preflight", command)

if __name__ == "__main__":
    sys.exit(main())
