"""The Ray Train trainer of a fit: its workers, its data stream, and its validation tasks."""

from dataclasses import asdict

import ray.train
from ray.train import ValidationConfig, ValidationTaskConfig
from ray.train.torch import TorchConfig, TorchTrainer

from blip3o import storage
from blip3o.data.stream import data_config
from blip3o.device import collective_backend, gpus_per_worker
from jobs.training.callbacks import CheckpointPruner
from jobs.training.plan import FitPlan
from jobs.training.resources import scaling_config
from jobs.training.standby import StreamStandbyKeeper, worker_runtime_env
from jobs.training.stream import datasets, stream_encoders
from jobs.training.validate import validate_checkpoint
from jobs.training.worker import train_worker


def build_trainer(plan: FitPlan, *, max_workers: int) -> TorchTrainer:
    """A trainer with at most `max_workers` workers that resumes the run from its storage."""
    first = plan.pipeline().stages[0]
    parallel = first.parallel
    filesystem, path = storage.resolve(first.run.storage)
    return TorchTrainer(
        train_worker,
        train_loop_config=asdict(plan),
        torch_config=TorchConfig(backend=collective_backend(parallel.device)),
        scaling_config=scaling_config(parallel, max_workers=max_workers),
        run_config=ray.train.RunConfig(
            name=plan.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=first.checkpoint.max_failures),
            callbacks=[CheckpointPruner(plan), StreamStandbyKeeper(parallel.data_actors)],
            worker_runtime_env=worker_runtime_env(parallel.device),
        ),
        validation_config=validation_config(plan),
        datasets=datasets(plan),
        dataset_config=data_config(parallel.data_labels, stream_encoders(plan)),
    )


def validation_config(plan: FitPlan) -> ValidationConfig | None:
    """The task with which Ray Train validates a checkpoint while training continues; None without validations."""
    pipeline = plan.pipeline()
    evaluate = next((recipe.evaluate for recipe in pipeline.stages if recipe.evaluate.every is not None), None)
    if evaluate is None:
        return None
    gpus = evaluate.gpus * gpus_per_worker(pipeline.stages[0].parallel.device)
    return ValidationConfig(
        fn=validate_checkpoint,
        task_config=ValidationTaskConfig(fn_kwargs={"plan": asdict(plan)}),
        ray_remote_kwargs={"num_cpus": evaluate.cpus, "num_gpus": gpus},
    )
