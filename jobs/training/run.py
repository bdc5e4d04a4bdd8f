"""A training run on the driver: open the inputs, check everything, skip finished stages, train, and recover.

Workers and stream are started once and serve every stage, because for a short stage starting them takes as long as
training. If all ranks stop at something recoverable, the next fit resumes from the newest checkpoint.

Ray Train and DeepSpeed are imported where they are needed: together they take more than a second of processor time,
and neither a dry run nor a finished run needs them.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from blip3o import storage
from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.recipe import Recipe
from blip3o.data.inputs import StageInputs
from blip3o.errors import Blip3oError, CheckpointError, ConfigError
from blip3o.runs.identities import changes, read_identity
from blip3o.runs.paths import final_uri, validation_uri
from blip3o.train.checkpoint import state as checkpoint
from blip3o.train.checkpoint.resume import resume_point
from blip3o.train.checkpoint.store import prune
from blip3o.train.features.encoder import FeatureCache
from blip3o.train.metrics.trackers import require_trackers
from blip3o.train.recovery import Interruption, recover
from jobs.commands.interruption import Stopped, StopRequest, run_apart
from jobs.common import join_ray
from jobs.training.checks import check_data, check_weights, stored_features
from jobs.training.plan import FitPlan
from jobs.training.preflight import require_static_checks
from jobs.training.resources import require_resources, usable_workers

logger = logging.getLogger(__name__)


def train(recipe: Recipe) -> dict[str, Any]:
    """Trains the recipe's stage to its last step; returns the description of its result. Raises as `train_pipeline`."""
    return train_pipeline(TrainingPipeline.of(recipe))[0]


def train_pipeline(pipeline: TrainingPipeline, *, report: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """Trains the stages in order, each from the results of those before it; returns the description of each result.

    Finished stages are skipped. `report` gets a line for each stage when it has finished, or if it had before. Raises
    subclasses of `Blip3oError` for everything that the user can fix, before the first step if possible.
    """
    stages, caches = _open(pipeline)
    results = finished_results(pipeline, stages)
    num_finished = len(results)
    _tell("already finished", pipeline.stages[:num_finished], results, report)
    if num_finished == len(stages):
        return results
    remaining = pipeline.stages[num_finished:]
    _require_same_identity(pipeline, stages[num_finished])
    require_static_checks(pipeline)
    _require_features(stages[num_finished:], caches[num_finished:])
    join_ray()
    require_resources(pipeline)
    _fit_with_progress(pipeline, stages, remaining)
    results = finished_results(pipeline, stages)
    for recipe in remaining:
        _warn_of_failed_validations(recipe)
    for recipe in pipeline.stages[len(results) :]:
        raise CheckpointError(f"run '{recipe.run.name}' ended without a result: see the log of its workers")
    _tell("finished", remaining, results[num_finished:], report)
    return results


def _tell(
    state: str, stages: Sequence[Recipe], results: Sequence[Mapping[str, Any]], report: Callable[[str], None] | None
) -> None:
    """Reports what stages came to, each in one line."""
    if report is None:
        return
    for recipe, result in zip(stages, results, strict=True):
        summary, uri = result["summary"], final_uri(recipe.run.storage, recipe.run.name)
        figures = f"{summary['steps']} steps, loss {summary['last_loss']:.4g}, {summary['seconds']:.0f} s of steps"
        report(f"{state}: {recipe.run.name}, {figures}, {uri}")


def _open(pipeline: TrainingPipeline) -> tuple[list[StageInputs], list[FeatureCache | None]]:
    """The checked inputs of every stage, and its stored features, if it uses any. Raises as the checks do."""
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


def finished_results(pipeline: TrainingPipeline, stages: Sequence[StageInputs]) -> list[dict[str, Any]]:
    """The results of the finished stages, which must be the first ones of the pipeline.

    Raises `ConfigError` if a result belongs to another recipe or other data, or if an earlier stage has not finished.
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
        # The same name with another recipe must not silently return the old weights.
        if result["identity"] != checkpoint.identity(recipe, data_sha256=inputs.sha256):
            found = changes(recipe, result["identity"], checkpoint.deciding(recipe, data_sha256=inputs.sha256))
            raise ConfigError(f"run '{recipe.run.name}' has finished with {found}: choose a new run.name")
        results.append(result)
    return results


def _require_same_identity(pipeline: TrainingPipeline, inputs: StageInputs) -> None:
    """Raises `ConfigError` if the checkpoints of the first stage that has not finished are of other numbers.

    The workers check it again, by the checkpoint itself: here it is found before any of them starts.
    """
    recipe = inputs.recipe
    if resume_point(recipe, pipeline.name).source != "checkpoint":
        return
    recorded = read_identity(recipe)
    if recorded is not None and recorded[0] != checkpoint.identity(recipe, data_sha256=inputs.sha256):
        found = changes(recipe, recorded[0], checkpoint.deciding(recipe, data_sha256=inputs.sha256))
        raise ConfigError(
            f"run '{recipe.run.name}' has checkpoints made with {found}: choose a new run.name, or restore the old "
            "recipe"
        )


def _require_features(stages: Sequence[StageInputs], caches: Sequence[FeatureCache | None]) -> None:
    """Raises `DataError` unless all features that the stages train on are stored."""
    for inputs, cache in zip(stages, caches, strict=True):
        if cache is not None:
            cache.require(inputs.manifests)


def _fit_with_progress(pipeline: TrainingPipeline, stages: Sequence[StageInputs], remaining: Sequence[Recipe]) -> None:
    """Trains, and shows the progress of the remaining stages.

    Raises `Stopped` after SIGINT or SIGTERM. The first saves a checkpoint, unless no step has been made.
    """
    from jobs.training.progress import TrackedRun, show_progress

    runs = [TrackedRun(run=it.run.name, steps=it.optim.steps, samples=it.optim.global_batch_size) for it in remaining]
    with (
        show_progress(runs) as view,
        StopRequest(worthwhile=lambda: view.stepped, on_request=view.request_stop) as request,
    ):
        view.show({"run": runs[0].run, "phase": f"starting {pipeline.stages[0].parallel.max_workers} workers"})
        stopped = run_apart(lambda: fit(pipeline, stages))
    if stopped is not None and request.signum is not None:
        raise Stopped(request.signum, stopped.message)


def fit(pipeline: TrainingPipeline, stages: Sequence[StageInputs]) -> Interruption | None:
    """Trains every stage that has not finished; each writes its result. Needs Ray to be initialised.

    Returns where the run was saved if the user has stopped it. Raises the `Blip3oError` of a worker, or
    `CheckpointError` if the run ended for another reason.
    """
    import ray.train

    from jobs.training.trainer import build_trainer

    plan = FitPlan.of(pipeline, stages)
    max_workers = pipeline.stages[0].parallel.max_workers
    # Ends: each pass finishes all stages, raises, lowers max_workers, or uses up a checkpoint or an allowed rewind.
    while True:
        try:
            returned = build_trainer(plan, max_workers=max_workers).fit().return_value
        except ray.train.TrainingFailedError as error:
            raise _user_error(error) from error
        if returned is None:
            for recipe in pipeline.stages:  # by now the last validations are done, too
                prune(recipe, pipeline.name)
            return None
        interruption = Interruption(**returned)
        if interruption.kind == "stop":
            return interruption
        if interruption.kind == "workers":
            max_workers = usable_workers(pipeline, interruption.workers)
            logger.warning("%s: continuing with %d", interruption.message, max_workers)
        else:
            recover(stages, pipeline.name, interruption)


def _user_error(error: Exception) -> Blip3oError:
    """The `Blip3oError` behind a failed run, if a worker raised one; else a `CheckpointError` with the last words of
    the first failure.
    """
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        # Ray wraps a worker's exception: as `__cause__`, or in an attribute of its own error classes.
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, Blip3oError):
                return cause
            cause = cause.__cause__ or getattr(cause, "cause", None)
    first = failures[0] if failures else error
    logger.error("a training worker failed", exc_info=first)
    return CheckpointError(f"training failed: {' '.join(str(first).split())[-600:]}")


def _warn_of_failed_validations(recipe: Recipe) -> None:
    """Logs the validations that have no result. Ray Train only reports a failed one in its controller's log."""
    due = [step for step in range(1, recipe.optim.steps + 1) if recipe.evaluate.due(step)]
    uris = {step: validation_uri(recipe.run.storage, recipe.run.name, step) for step in due}
    failed = [step for step, uri in uris.items() if not storage.exists(uri)]
    if failed:
        logger.warning("run '%s': no validation after steps %s: see the log of Ray Train", recipe.run.name, failed)
