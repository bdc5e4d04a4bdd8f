"""The resources that a fit requests from Ray, and whether Ray has them."""

import logging
from typing import TYPE_CHECKING

from blip3o import settings
from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.training import ParallelConfig
from blip3o.device import gpus_per_worker
from blip3o.errors import ConfigError
from jobs.common import on_a_cluster
from jobs.training.stream import reads_locally, streams_features

if TYPE_CHECKING:
    from ray.train import ScalingConfig

logger = logging.getLogger(__name__)

# How often an elastic run looks for more nodes. A resize costs a restart from the newest checkpoint.
RESIZE_SECONDS = 30.0
NODE_START_SECONDS = 600  # a GPU node takes minutes to come up; an elastic run starts with what there is instead


def requested_resources(pipeline: TrainingPipeline) -> tuple[float, float]:
    """Logical CPUs and GPUs that a pipeline's fit reserves at its minimum number of workers."""
    cpus, gpus = _reserved(pipeline, pipeline.stages[0].parallel.min_workers)
    more_cpus, more_gpus = _for_validation(pipeline)
    return cpus + more_cpus, gpus + more_gpus


def _reserved(pipeline: TrainingPipeline, workers: int) -> tuple[float, float]:
    """CPUs and GPUs that training alone reserves with this many workers: theirs, and those of the stream's actors."""
    parallel = pipeline.stages[0].parallel
    encoders = parallel.encoder_actors if streams_features(pipeline) else 0
    decoding = 0.0 if reads_locally(pipeline) else parallel.data_actors * parallel.cpus_per_data_actor
    cpus = workers * parallel.cpus_per_worker + decoding
    devices = workers + encoders * parallel.gpus_per_encoder_actor
    return cpus + encoders * parallel.cpus_per_encoder_actor, devices * gpus_per_worker(parallel.device)


def _for_validation(pipeline: TrainingPipeline) -> tuple[float, float]:
    """CPUs and GPUs of the largest validation; 0 without validations."""
    validated = [recipe.evaluate for recipe in pipeline.stages if recipe.evaluate.every is not None]
    devices = max((it.gpus for it in validated), default=0)
    return max((it.cpus for it in validated), default=0), devices * gpus_per_worker(pipeline.stages[0].parallel.device)


def validation_problem(pipeline: TrainingPipeline, cpus: float, gpus: float) -> str | None:
    """Why no validation would ever start on a cluster of this size, with the fix; None if one fits next to training.

    Ray Train waits for pending validations after the last step: one that never fits would keep a finished run waiting
    forever. A cluster on which not even the minimum of workers fits must grow anyway, so that nothing is known of it.
    """
    own_cpus, own_gpus = _for_validation(pipeline)
    parallel = pipeline.stages[0].parallel
    # Ray Train starts as many workers as fit, and a number that does not divide a step is lowered.
    fitting = [
        count
        for count in range(parallel.min_workers, parallel.max_workers + 1)
        if _fits(_reserved(pipeline, count), cpus, gpus)
    ]
    if not own_cpus or not fitting:
        return None
    workers = max(usable_workers(pipeline, fitting[-1]), parallel.min_workers)
    used_cpus, used_gpus = _reserved(pipeline, workers)
    if _fits((used_cpus + own_cpus, used_gpus + own_gpus), cpus, gpus):
        return None
    return (
        f"a validation (evaluate.every) needs {own_cpus:g} CPUs and {own_gpus:g} GPUs, and {workers} workers leave "
        f"{cpus - used_cpus:g} and {gpus - used_gpus:g}: it would never start, and the run would wait for it forever. "
        "Lower parallel.workers, leave out evaluate.every, or set evaluate.autoscaled=true if the cluster adds nodes"
    )


def _fits(needed: tuple[float, float], cpus: float, gpus: float) -> bool:
    return needed[0] <= cpus and needed[1] <= gpus


def require_resources(pipeline: TrainingPipeline) -> None:
    """Raises `ConfigError` if a private Ray on this machine can never start the run, or if no validation would ever
    start. On a cluster, which may grow, the run waits for its workers.
    """
    import ray

    cpus, gpus = requested_resources(pipeline)
    total = ray.cluster_resources()
    offered = total.get("CPU", 0), total.get("GPU", 0)
    require_validation(pipeline, *offered)
    if _fits((cpus, gpus), *offered):
        return
    message = f"parallel asks for {cpus:g} CPUs and {gpus:g} GPUs, Ray offers {offered[0]:g} and {offered[1]:g}"
    if on_a_cluster():
        logger.warning("%s: waiting for the cluster to grow", message)
    else:
        raise ConfigError(f"{message}: lower parallel.workers, set parallel.device=cpu, or submit to a cluster")


def require_validation(pipeline: TrainingPipeline, cpus: float, gpus: float) -> None:
    """Raises `ConfigError` with `validation_problem`, unless the cluster is said to add nodes."""
    problem = validation_problem(pipeline, cpus, gpus)
    if problem and not (on_a_cluster() and any(recipe.evaluate.autoscaled for recipe in pipeline.stages)):
        raise ConfigError(problem)


def scaling_config(parallel: ParallelConfig, *, max_workers: int) -> "ScalingConfig":
    """The resources that Ray Train reserves for at most `max_workers` workers, and the nodes they may run on."""
    from ray.train import ScalingConfig

    if parallel.min_workers == max_workers:
        settings.export({"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(NODE_START_SECONDS)})
    return ScalingConfig(
        num_workers=max_workers if parallel.min_workers == max_workers else (parallel.min_workers, max_workers),
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        use_gpu=gpus_per_worker(parallel.device) > 0,
        resources_per_worker={"CPU": parallel.cpus_per_worker, "GPU": gpus_per_worker(parallel.device)},
        label_selector=dict(parallel.worker_labels) or None,
    )


def usable_workers(pipeline: TrainingPipeline, workers: int) -> int:
    """The largest number of workers, up to `workers`, that divides the micro-batches of a step in every stage.

    It is at least `parallel.workers.min`: the recipe's validator requires that number to divide them.
    """
    batches = [recipe.optim.micro_batches for recipe in pipeline.stages]
    return next(count for count in range(workers, 0, -1) if all(number % count == 0 for number in batches))
