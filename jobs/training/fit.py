"""One Ray Train fit over the stages of a pipeline: trainer, stream, and where both begin after an interruption.

Workers, stream and their processes are started once and serve every stage: for a short stage, starting them takes as
long as training.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.training import ParallelConfig
from blip3o.device import collective_backend, gpus_per_worker
from blip3o.errors import Blip3oError, CheckpointError
from blip3o.train.checkpoint.store import committed_step
from blip3o.train.recovery import Interruption, answer

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from ray.data import Dataset
    from ray.train import Checkpoint, ScalingConfig, ValidationConfig
    from ray.train.torch import TorchTrainer

    from blip3o.data.stream import Encoders


# Seconds between two looks of an elastic run for more nodes; a resize costs a restart from the newest checkpoint.
RESIZE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """Stages to train: the resolved recipes as nested values, and for each the sha256 of its data and that of its
    stored features' provenance (None where it has none).

    Plain values, since it travels to the workers and to the stream's actors.
    """

    name: str
    recipes: tuple[dict[str, Any], ...]
    data_sha256: tuple[list[str], ...]
    features: tuple[str | None, ...]

    def pipeline(self) -> TrainingPipeline:
        """The recipes, validated again."""
        from blip3o.config.load import build_recipe

        return TrainingPipeline(name=self.name, stages=tuple(build_recipe(tree) for tree in self.recipes))


def fit(pipeline: TrainingPipeline, data_sha256: list[list[str]], features: list[str | None]) -> None:
    """Trains every stage that has not finished; each leaves its result. Needs Ray to be initialised.

    `features` are the sha256 of the provenance of each stage's stored features, None where it has none.

    Raises the `Blip3oError` of a worker, or `CheckpointError` for what else ended the run.
    """
    import ray.train

    recipes = tuple(recipe.model_dump(mode="json") for recipe in pipeline.stages)
    plan = FitPlan(name=pipeline.name, recipes=recipes, data_sha256=tuple(data_sha256), features=tuple(features))
    most = pipeline.stages[0].parallel.max_workers
    while True:
        try:
            told = _trainer(plan, pipeline, most=most).fit().return_value
        except ray.train.TrainingFailedError as error:
            raise _user_error(error) from error
        if told is None:
            return
        interruption = Interruption(**told)
        if interruption.kind == "workers":
            most = sharing(pipeline, interruption.workers)
            logger.warning("%s: goes on with %d", interruption.message, most)
        else:
            answer(pipeline, features, interruption)


def sharing(pipeline: TrainingPipeline, workers: int) -> int:
    """The largest number of workers, of at most so many, that can share the micro-batches of a step in every stage.

    That is at least `parallel.workers.min`, which the recipe's own check has found to divide them.
    """
    batches = [recipe.optim.micro_batches for recipe in pipeline.stages]
    return next(count for count in range(workers, 0, -1) if not any(m % count for m in batches))


def _trainer(plan: FitPlan, pipeline: TrainingPipeline, *, most: int) -> "TorchTrainer":
    """A trainer of at most so many workers that goes on where the run stands in its storage."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from blip3o import storage
    from blip3o.data.stream import data_config
    from jobs.training.worker import train_worker

    first = pipeline.stages[0]
    parallel, saved = first.parallel, first.checkpoint
    filesystem, path = storage.resolve(first.run.storage)
    return TorchTrainer(
        train_worker,
        train_loop_config=asdict(plan),
        torch_config=TorchConfig(backend=collective_backend(parallel.device)),
        scaling_config=scaling(parallel, most=most),
        run_config=ray.train.RunConfig(
            name=pipeline.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=saved.max_failures),
        ),
        validation_config=validations(plan),
        datasets={"train": stream_factory(plan)},
        dataset_config=data_config(parallel.data_labels, stream_encoders(plan)),
    )


def scaling(parallel: ParallelConfig, *, most: int) -> "ScalingConfig":
    """What Ray Train reserves for the workers, of at most so many, and where."""
    from ray.train import ScalingConfig

    return ScalingConfig(
        num_workers=most if parallel.min_workers == most else (parallel.min_workers, most),
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        use_gpu=gpus_per_worker(parallel.device) > 0,
        resources_per_worker={"CPU": parallel.cpus_per_worker, "GPU": gpus_per_worker(parallel.device)},
        label_selector=dict(parallel.worker_labels) or None,
    )


def validations(plan: FitPlan) -> "ValidationConfig | None":
    """What Ray Train runs beside the training for a checkpoint that asks for it; None if no stage has validations."""
    from ray.train import ValidationConfig, ValidationTaskConfig

    pipeline = plan.pipeline()
    evaluate = next((recipe.evaluate for recipe in pipeline.stages if recipe.evaluate.every is not None), None)
    if evaluate is None:
        return None
    gpus = evaluate.gpus * gpus_per_worker(pipeline.stages[0].parallel.device)
    return ValidationConfig(
        fn=_validate,
        task_config=ValidationTaskConfig(fn_kwargs={"plan": asdict(plan)}),
        ray_remote_kwargs={"num_cpus": evaluate.cpus, "num_gpus": gpus},
    )


def _validate(checkpoint: "Checkpoint", *, plan: dict[str, Any]) -> dict[str, float]:
    from jobs.training.validate import validate_checkpoint

    return validate_checkpoint(checkpoint, plan=plan)


def stream_factory(plan: FitPlan) -> "Callable[[], Dataset]":
    """A factory that Ray Train calls at every (re)start of the workers: the stream from the newest checkpoint on."""

    def build() -> "Dataset":
        from blip3o.data.stream import build_stream

        pipeline = plan.pipeline()
        parallel = pipeline.stages[0].parallel
        return build_stream(
            num_micro_batches=pipeline.ends[-1],
            first=next_micro_batch(pipeline),
            make_micro_batch_fn=lambda: staged_micro_batches(plan.pipeline(), plan.features),
            concurrency=parallel.data_actors,
            threads=parallel.data_threads,
            num_cpus=parallel.cpus_per_data_actor,
            labels=parallel.data_labels,
            encoders=stream_encoders(plan),
        )

    return build


def stream_encoders(plan: FitPlan) -> "Encoders | None":
    """The encoding actors of the stream; None if no stage streams its features."""
    from blip3o.data.stream import Encoders

    pipeline = plan.pipeline()
    if not streams_features(pipeline):
        return None
    parallel = pipeline.stages[0].parallel
    return Encoders(
        make=lambda: staged_encoders(plan.pipeline()),
        count=parallel.encoder_actors,
        num_cpus=parallel.cpus_per_encoder_actor,
        num_gpus=parallel.gpus_per_encoder_actor * gpus_per_worker(parallel.device),
        labels=parallel.encoder_labels,
    )


def staged_micro_batches(
    pipeline: TrainingPipeline, features: Sequence[str | None]
) -> "Callable[[int], dict[str, Any]]":
    """Micro-batch number → arrays, through all stages of a pipeline; `features` as for `fit`."""
    from functools import partial

    from blip3o.data.batches import StagedMicroBatches, build_micro_batches
    from blip3o.train.stages import stage_of

    builders = [
        partial(build_micro_batches, recipe, stage_of(recipe).task, sha256)
        for recipe, sha256 in zip(pipeline.stages, features, strict=True)
    ]
    return StagedMicroBatches(builders, pipeline.ends)


def streams_features(pipeline: TrainingPipeline) -> bool:
    """Whether a stage's features are computed in the stream, by encoding actors."""
    return any(recipe.data.features == "stream" for recipe in pipeline.stages)


def staged_encoders(pipeline: TrainingPipeline) -> "Callable[[dict[str, Any]], dict[str, Any]]":
    """Arrays of a micro-batch → the same with features in place of the encoder's pixels, where its stage streams them.

    The encoder of such a stage is built when it is reached; the newest is held.
    """
    from bisect import bisect_right
    from functools import lru_cache

    from blip3o.device import select
    from blip3o.train.features.encoder import FeatureMaker

    @lru_cache(maxsize=1)
    def maker(stage: int) -> FeatureMaker:
        recipe = pipeline.stages[stage]
        return FeatureMaker(recipe, select(recipe.parallel.device))

    def encode(arrays: dict[str, Any]) -> dict[str, Any]:
        stage = bisect_right(pipeline.ends, int(arrays["micro_batch"][0]))
        if pipeline.stages[stage].data.features != "stream":
            return arrays
        others = {name: array for name, array in arrays.items() if name != "encoder_pixels"}
        return {**others, "features": maker(stage).column(arrays["encoder_pixels"])}

    return encode


def next_micro_batch(pipeline: TrainingPipeline) -> int:
    """Where the stream begins: at the newest checkpoint of the first stage that has not finished, or at its start."""
    from blip3o.train.weights import final_uri, read_description

    for number, recipe in enumerate(pipeline.stages):
        if read_description(final_uri(recipe.run.storage, recipe.run.name)) is None:
            return pipeline.start(number, committed_step(recipe, pipeline.name))
    return pipeline.ends[-1]


def _user_error(error: Exception) -> Blip3oError:
    """The user's error behind a failed run, if a worker raised one; else the first line of what failed."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, Blip3oError):
                return cause
            cause = cause.__cause__ or getattr(cause, "cause", None)
    first = failures[0] if failures else error
    logger.error("a training worker failed", exc_info=first)
    return CheckpointError(f"training failed: {' '.join(str(first).split())[-600:]}")
