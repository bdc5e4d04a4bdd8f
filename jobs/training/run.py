"""The story of a run, on the driver: open the inputs, check everything, skip what has finished, train, and report.

Workers, stream and their processes are started once and serve every stage: for a short stage, starting them takes as
long as training. If all ranks stop at something that can be mended, the next fit goes on from where it leaves the run.

What starts workers is imported when it is needed: Ray Train and DeepSpeed take more than a second of processor time,
for which neither a dry run nor a run that has finished has any use.
"""

import logging
from collections.abc import Sequence
from typing import Any

from blip3o import storage
from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.recipe import Recipe
from blip3o.data.inputs import StageInputs
from blip3o.errors import Blip3oError, CheckpointError, ConfigError
from blip3o.runs.paths import validation_uri
from blip3o.train.checkpoint import state as checkpoint
from blip3o.train.checkpoint.resume import resume_point
from blip3o.train.features.encoder import FeatureCache
from blip3o.train.metrics.trackers import require_trackers
from blip3o.train.recovery import Interruption, recover
from jobs.common import join_ray
from jobs.training.checks import check_data, check_weights, stored_features
from jobs.training.plan import FitPlan
from jobs.training.preflight import require_planned
from jobs.training.resources import require_resources, sharing

logger = logging.getLogger(__name__)


def train(recipe: Recipe) -> dict[str, Any]:
    """Trains the recipe's stage to its last step and returns the description of its result. Raises as a pipeline."""
    return train_pipeline(TrainingPipeline.of(recipe))[0]


def train_pipeline(pipeline: TrainingPipeline) -> list[dict[str, Any]]:
    """Trains the stages in their order, each from the results before it; returns the description of each result.

    Stages that have finished are skipped. Raises `Blip3oError` kinds for everything that a user can mend, before the
    first step where that is possible.
    """
    stages, caches = _open(pipeline)
    results = finished_results(pipeline, stages)
    if len(results) == len(stages):
        return results
    rest = pipeline.stages[len(results) :]
    require_planned(pipeline)
    _require_features(stages[len(results) :], caches[len(results) :])
    join_ray()
    require_resources(pipeline)
    _fit_shown(pipeline, stages, rest)
    results = finished_results(pipeline, stages)
    for recipe in rest:
        _warn_of_validations(recipe)
    for recipe in pipeline.stages[len(results) :]:
        raise CheckpointError(f"run '{recipe.run.name}' ended without a result: see the log of its workers")
    return results


def _open(pipeline: TrainingPipeline) -> tuple[list[StageInputs], list[FeatureCache | None]]:
    """The inputs of every stage, checked, and the features that it finds stored. Raises as the checks do."""
    for recipe in pipeline.stages:
        require_trackers(recipe)
    caches = [stored_features(recipe) for recipe in pipeline.stages]
    stages = [
        StageInputs(recipe, features_sha256=cache.sha256 if cache else None)
        for recipe, cache in zip(pipeline.stages, caches, strict=True)
    ]
    for inputs in stages:
        check_data(inputs)
    check_weights(stages)
    return stages, caches


def _require_features(stages: Sequence[StageInputs], caches: Sequence[FeatureCache | None]) -> None:
    """Raises `DataError` unless all features that the stages train on are stored."""
    for inputs, cache in zip(stages, caches, strict=True):
        if cache is not None:
            cache.require(inputs.manifests)


def finished_results(pipeline: TrainingPipeline, stages: Sequence[StageInputs]) -> list[dict[str, Any]]:
    """Results of the stages that have finished, the first ones.

    Raises `ConfigError` if one was made with another recipe or data, or has finished before an earlier stage.
    """
    results: list[dict[str, Any]] = []
    for number, inputs in enumerate(stages):
        recipe = inputs.recipe
        result = resume_point(recipe, pipeline.name).result
        if result is None:
            continue
        if len(results) < number:
            raise ConfigError(
                f"run '{recipe.run.name}' has finished, but '{pipeline.stages[number - 1].run.name}' before it has "
                "not: choose a new run.name for it"
            )
        if result["identity"] != checkpoint.identity(recipe, data_sha256=inputs.sha256):
            raise ConfigError(
                f"run '{recipe.run.name}' has finished with another recipe or other data: choose a new run.name"
            )
        results.append(result)
    return results


def _fit_shown(pipeline: TrainingPipeline, stages: Sequence[StageInputs], rest: Sequence[Recipe]) -> None:
    """Trains, with a bar for each of the stages that are left."""
    from jobs.training.progress import Shown, shown

    with shown([Shown(run=recipe.run.name, total=recipe.optim.steps) for recipe in rest]):
        fit(pipeline, stages)


def fit(pipeline: TrainingPipeline, stages: Sequence[StageInputs]) -> None:
    """Trains every stage that has not finished; each leaves its result. Needs Ray to be initialised.

    Raises the `Blip3oError` of a worker, or `CheckpointError` for what else ended the run.
    """
    import ray.train

    from jobs.training.trainer import build_trainer

    plan = FitPlan.of(pipeline, stages)
    most = pipeline.stages[0].parallel.max_workers
    while True:
        try:
            found = build_trainer(plan, most=most).fit().return_value
        except ray.train.TrainingFailedError as error:
            raise _user_error(error) from error
        if found is None:
            return
        interruption = Interruption(**found)
        if interruption.kind == "workers":
            most = sharing(pipeline, interruption.workers)
            logger.warning("%s: goes on with %d", interruption.message, most)
        else:
            recover(stages, pipeline.name, interruption)


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


def _warn_of_validations(recipe: Recipe) -> None:
    """Names the validations that failed: Ray Train only reports it in the log of its controller."""
    due = [step for step in range(1, recipe.optim.steps + 1) if recipe.evaluate.due(step)]
    places = {step: validation_uri(recipe.run.storage, recipe.run.name, step) for step in due}
    failed = [step for step, place in places.items() if not storage.exists(place)]
    if failed:
        logger.warning("run '%s': no validation after steps %s: see the log of Ray Train", recipe.run.name, failed)
