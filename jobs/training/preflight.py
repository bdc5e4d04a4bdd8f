"""All that can be known of a run before its first step, as checks with their numbers.

The checks of one recipe are in `blip3o.train.preflight`; here they are joined with those of the pipeline, its data and
weights, and the cluster.
"""

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial

from blip3o.config.cluster import ClusterConfig
from blip3o.config.pipeline import TrainingPipeline
from blip3o.data.inputs import StageInputs
from blip3o.train.preflight.checks import Check, attempted, counted, judged, of_features, of_recipe, of_store, require
from blip3o.train.preflight.memory import GIB
from jobs.common import join_ray
from jobs.training.checks import check_data, check_weights
from jobs.training.resources import asked

KIND = "accelerator_type:"  # how Ray names what a node's GPUs are


def planned(pipeline: TrainingPipeline, cluster: ClusterConfig | None) -> Iterator[tuple[str, Check]]:
    """(stage's run, check) of what needs neither store nor Ray: what a dry run reports."""
    for recipe in pipeline.stages:
        for check in counted(recipe, cluster):
            yield recipe.run.name, check
    if cluster is not None:
        yield pipeline.name, of_resources(pipeline, cluster.total_cpus, cluster.total_gpus)


def require_planned(pipeline: TrainingPipeline) -> None:
    """The cheap checks, before workers start. Raises `ConfigError` that names what is wrong."""
    checks = [check for recipe in pipeline.stages for check in of_recipe(recipe)]
    require([*checks, *of_store(pipeline.stages[0].run.storage)])


def of_resources(pipeline: TrainingPipeline, cpus: float, gpus: float) -> Check:
    """Whether so many CPUs and GPUs can hold the pipeline's workers, decoders and encoders."""
    asked_cpus, asked_gpus = asked(pipeline)
    return judged(
        "resources",
        good=asked_cpus <= cpus and asked_gpus <= gpus,
        detail=f"{asked_cpus:g} CPUs and {asked_gpus:g} GPUs of {cpus:g} and {gpus:g}",
        fix="lower parallel.workers, set parallel.device=cpu, or take a larger cluster",
    )


def preflight(pipeline: TrainingPipeline, cluster: ClusterConfig | None, *, ranks: bool) -> Iterator[tuple[str, Check]]:
    """(stage's run or pipeline, check) of everything; with a pretended cluster, Ray is not asked."""
    yield from planned(pipeline, cluster or ray_cluster())
    for uri in dict.fromkeys(recipe.run.storage for recipe in pipeline.stages):
        for check in of_store(uri):
            yield pipeline.name, check
    stages = [StageInputs(recipe) for recipe in pipeline.stages]
    for inputs in stages:
        yield inputs.recipe.run.name, attempted("data", partial(check_data, inputs))
        for check in of_features(inputs):
            yield inputs.recipe.run.name, check
    yield pipeline.name, attempted("weights", partial(check_weights, stages))
    if ranks:  # loads Ray Train, which the other checks do without
        from jobs.training.ranks import of_ranks

        yield pipeline.name, of_ranks(pipeline)


def ray_cluster() -> ClusterConfig:
    """The nodes that Ray has now, each as its smallest; the disk is what this node has free for temporary files."""
    import ray

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
