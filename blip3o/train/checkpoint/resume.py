"""Where a run goes on: the one rule that the driver, the stream and the workers ask."""

from dataclasses import dataclass
from typing import Any, Literal

from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.recipe import Recipe
from blip3o.runs.paths import final_uri
from blip3o.runs.results import read_description
from blip3o.train.checkpoint.store import committed_step


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """Where a stage goes on: after `step` optimizer steps, from what `source` names.

    `result` is the description of a finished run, else None.
    """

    source: Literal["finished", "checkpoint", "start_from", "seed"]
    step: int
    result: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.source == "finished"


def resume_point(recipe: Recipe, fit_name: str) -> ResumePoint:
    """Where a stage goes on. Of these, the first that there is:

    1. `finished`: the result of the run. Nothing is trained.
    2. `checkpoint`: the newest checkpoint that Ray Train has committed and that is not rejected.
    3. `start_from`: step 0, with the weights of the runs that the recipe names.
    4. `seed`: step 0, with weights that are drawn from `run.seed`.

    Nothing is remembered between calls: the storage decides. `fit_name` is the name under which Ray Train knows the
    run (the pipeline's). The loop checks that stream and workers agree: a micro-batch of another step is an error.

    Raises `CheckpointError` if the result or the snapshot cannot be read, or if every checkpoint is rejected.
    """
    result = read_description(final_uri(recipe.run.storage, recipe.run.name))
    if result is not None:
        return ResumePoint(source="finished", step=recipe.optim.steps, result=result)
    step = committed_step(recipe, fit_name)
    if step:
        return ResumePoint(source="checkpoint", step=step)
    return ResumePoint(source="start_from" if recipe.stage.start_from else "seed", step=0)


def next_micro_batch(pipeline: TrainingPipeline) -> int:
    """The number of the micro-batch with which the stream begins: that of the first stage that has not finished."""
    for number, recipe in enumerate(pipeline.stages):
        point = resume_point(recipe, pipeline.name)
        if not point.finished:
            return pipeline.start(number, point.step)
    return pipeline.ends[-1]
