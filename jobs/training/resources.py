"""The resources that a fit requests from Ray, and whether Ray has them."""

import logging
from typing import TYPE_CHECKING

from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.training import ParallelConfig
from blip3o.device import gpus_per_worker
from blip3o.errors import ConfigError
from jobs.common import on_a_cluster
from jobs.training.stream import streams_features

if TYPE_CHECKING:
    from ray.train import ScalingConfig

logger = logging.getLogger(__name__)

# How often an elastic run looks for more nodes. A resize costs a restart from the newest checkpoint.
RESIZE_SECONDS = 30.0


def requested_resources(pipeline: TrainingPipeline) -> tuple[float, float]:
    """Logical CPUs and GPUs that a pipeline's fit reserves at its minimum number of workers."""
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
    return cpus, devices * gpus_per_worker(parallel.device)


def require_resources(pipeline: TrainingPipeline) -> None:
    """Raises `ConfigError` if a private Ray on this machine can never start the run. On a cluster, which may grow, the
    run waits.
    """
    import ray

    cpus, gpus = requested_resources(pipeline)
    offered = ray.cluster_resources()
    if cpus <= offered.get("CPU", 0) and gpus <= offered.get("GPU", 0):
        return
    message = (
        f"parallel asks for {cpus:g} CPUs and {gpus:g} GPUs, Ray offers {offered.get('CPU', 0):g} and "
        f"{offered.get('GPU', 0):g}"
    )
    if on_a_cluster():
        logger.warning("%s: waiting for the cluster to grow", message)
    else:
        raise ConfigError(f"{message}: lower parallel.workers, set parallel.device=cpu, or submit to a cluster")


def scaling_config(parallel: ParallelConfig, *, max_workers: int) -> "ScalingConfig":
    """The resources that Ray Train reserves for at most `max_workers` workers, and the nodes they may run on."""
    from ray.train import ScalingConfig

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
