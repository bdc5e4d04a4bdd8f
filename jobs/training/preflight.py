"""Preflight checks of a whole run: recipes, data, weights, storage, and the cluster.

The checks of one recipe are in `blip3o.train.preflight`; this module adds those that need the pipeline or Ray.
"""

import shutil
from collections.abc import Iterator
from functools import partial

from blip3o.config.cluster import ClusterConfig
from blip3o.config.pipeline import TrainingPipeline
from blip3o.data.inputs import StageInputs
from blip3o.train.checkpoint.staging import staging_root
from blip3o.train.preflight.checks import (
    Check,
    check_call,
    feature_checks,
    recipe_checks,
    require,
    static_checks,
    store_checks,
    verdict,
)
from blip3o.train.preflight.memory import GIB
from jobs.common import join_ray
from jobs.training.checks import check_data, check_weights
from jobs.training.resources import requested_resources, validation_problem

ACCELERATOR_PREFIX = "accelerator_type:"  # of Ray's node resource that names the GPU model


def dry_run_checks(pipeline: TrainingPipeline, cluster: ClusterConfig | None) -> Iterator[tuple[str, Check]]:
    """(run name, check) for every check that needs neither storage nor Ray: the report of a dry run."""
    for recipe in pipeline.stages:
        for check in static_checks(recipe, cluster):
            yield recipe.run.name, check
    if cluster is not None:
        yield pipeline.name, resource_check(pipeline, cluster.total_cpus, cluster.total_gpus)
        yield from _validation_checks(pipeline, cluster)


def require_static_checks(pipeline: TrainingPipeline) -> None:
    """Runs the cheap checks before workers start. Raises `ConfigError` that names every failed check."""
    checks = [check for recipe in pipeline.stages for check in recipe_checks(recipe)]
    require([*checks, *store_checks(pipeline.stages[0].run.storage)])


def resource_check(pipeline: TrainingPipeline, cpus: float, gpus: float) -> Check:
    """Whether this many CPUs and GPUs are enough for the pipeline's workers, decoders and encoders."""
    needed_cpus, needed_gpus = requested_resources(pipeline)
    return verdict(
        "resources",
        good=needed_cpus <= cpus and needed_gpus <= gpus,
        detail=f"{needed_cpus:g} CPUs and {needed_gpus:g} GPUs of {cpus:g} and {gpus:g}",
        fix="lower parallel.workers, set parallel.device=cpu, or take a larger cluster",
    )


def _validation_checks(pipeline: TrainingPipeline, cluster: ClusterConfig) -> Iterator[tuple[str, Check]]:
    """Whether validations fit next to the workers that a cluster starts; nothing without validations."""
    validated = [recipe.evaluate for recipe in pipeline.stages if recipe.evaluate.every is not None]
    if not validated:
        return
    problem = validation_problem(pipeline, cluster.total_cpus, cluster.total_gpus)
    if problem is None or any(evaluate.autoscaled for evaluate in validated):
        detail = "fits next to the workers" if problem is None else "on a node that the cluster adds"
        yield pipeline.name, Check(name="validation", state="ok", detail=detail)
    else:
        yield pipeline.name, Check(name="validation", state="wrong", detail=problem)


def preflight(pipeline: TrainingPipeline, cluster: ClusterConfig | None, *, ranks: bool) -> Iterator[tuple[str, Check]]:
    """(run or pipeline name, check) for every check. If `cluster` is given, Ray is not asked for its nodes."""
    cluster = cluster or ray_cluster()
    yield from dry_run_checks(pipeline, cluster)
    if cluster is None:
        detail = "no node with CPUs is up: give the size that the cluster will have, such as --cluster 4x8xH100"
        yield pipeline.name, Check(name="resources", state="not known", detail=detail)
    for uri in dict.fromkeys(recipe.run.storage for recipe in pipeline.stages):
        for check in store_checks(uri):
            yield pipeline.name, check
    stages = [StageInputs(recipe) for recipe in pipeline.stages]
    for inputs in stages:
        yield inputs.recipe.run.name, check_call("data", partial(check_data, inputs))
        for check in feature_checks(inputs):
            yield inputs.recipe.run.name, check
    yield pipeline.name, check_call("weights", partial(check_weights, stages))
    if ranks:  # imports Ray Train, which the other checks do not need
        from jobs.training.bandwidth import all_reduce_check
        from jobs.training.ranks import rank_check

        yield pipeline.name, rank_check(pipeline)
        workers = pipeline.stages[0].parallel.max_workers
        if workers > 1:
            yield pipeline.name, all_reduce_check(pipeline, workers)


def ray_cluster() -> ClusterConfig | None:
    """Ray's nodes, all counted as the smallest one, and this node's free disk space for checkpoints on their way.

    None if only nodes without CPUs are up: the head of a cluster that starts nodes for a run.
    """
    import ray

    join_ray()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not nodes:
        return None
    with_gpus = [node for node in nodes if node.get("GPU")] or nodes
    names = [key for node in with_gpus for key in node if key.startswith(ACCELERATOR_PREFIX)]
    models = {name.removeprefix(ACCELERATOR_PREFIX) for name in names}
    model = next(iter(models)) if len(models) == 1 else None
    free = shutil.disk_usage(staging_root()).free
    return ClusterConfig(
        nodes=len(with_gpus),
        gpus=int(min(node.get("GPU", 0) for node in with_gpus)),
        gpu=model,
        cpus=sum(node["CPU"] for node in nodes) / len(with_gpus),
        memory_gib=min(node["memory"] for node in with_gpus) / GIB,
        disk_gib=free / GIB,
    )
