"""Where a run resumes: the single rule that the driver, the data stream and the workers share."""

from dataclasses import dataclass
from typing import Any, Literal

from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.recipe import Recipe
from blip3o.runs.paths import final_uri
from blip3o.runs.results import read_description
from blip3o.train.checkpoint.store import committed_step


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """Where a stage resumes: after `step` optimizer steps, from `source`.

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
    """Where a stage resumes. The first of these sources that exists:

    1. `finished`: the result of the run. Nothing is trained.
    2. `checkpoint`: the newest checkpoint that Ray Train has committed and that has not been rejected.
    3. `start_from`: step 0, with the weights of the runs that the recipe names.
    4. `seed`: step 0, with random weights from `run.seed`.

    The answer depends only on the storage: nothing is cached between calls. `fit_name` is Ray Train's name for the run,
    which is the pipeline's name. The loop verifies that stream and workers agree: a micro-batch of another step is an
    error.

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
    """The number of the stream's first micro-batch: where the first stage that has not finished resumes."""
    for number, recipe in enumerate(pipeline.stages):
        point = resume_point(recipe, pipeline.name)
        if not point.finished:
            return pipeline.start(number, point.step)
    return pipeline.ends[-1]
