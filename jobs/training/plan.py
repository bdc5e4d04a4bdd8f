"""The plan of a fit: the message from the driver to workers, stream actors and validation tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blip3o.config.load import build_recipe
from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.recipe import Recipe
from blip3o.data.inputs import StageInputs
from blip3o.train.checkpoint import state as checkpoint
from blip3o.train.checkpoint.resume import ResumePoint, resume_point


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage of a fit, as opened in one process. `data_sha256` are the data hashes that the driver computed."""

    inputs: StageInputs
    data_sha256: Sequence[str]
    fit_name: str
    first_micro_batch: int

    @property
    def recipe(self) -> Recipe:
        """The stage's recipe."""
        return self.inputs.recipe

    def resume_point(self) -> ResumePoint:
        """Where the stage resumes. Raises `CheckpointError`."""
        return resume_point(self.recipe, self.fit_name)

    def identity(self) -> str:
        """sha256 of everything that determines its numbers.

        Raises `ConfigError` if a run that it starts from has not finished.
        """
        return checkpoint.identity(self.recipe, data_sha256=self.data_sha256)

    def deciding(self) -> dict[str, Any]:
        """What the identity is computed from. Raises as `identity`."""
        return checkpoint.deciding(self.recipe, data_sha256=self.data_sha256)


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """The stages to train.

    `recipes` are resolved recipes as nested values. For each of them, `data_sha256` are the hashes of its data, and
    `features` is the hash of its stored features' provenance (None without stored features). The plan holds plain
    values because it is sent between processes; each process opens its own inputs.
    """

    name: str
    recipes: tuple[dict[str, Any], ...]
    data_sha256: tuple[list[str], ...]
    features: tuple[str | None, ...]

    @classmethod
    def of(cls, pipeline: TrainingPipeline, stages: Sequence[StageInputs]) -> "FitPlan":
        """The plan of a pipeline, from its opened inputs. Raises as reading their data does."""
        return cls(
            name=pipeline.name,
            recipes=tuple(recipe.model_dump(mode="json") for recipe in pipeline.stages),
            data_sha256=tuple(inputs.sha256 for inputs in stages),
            features=tuple(inputs.features_sha256 for inputs in stages),
        )

    def pipeline(self) -> TrainingPipeline:
        """The recipes, validated again."""
        return TrainingPipeline(name=self.name, stages=tuple(build_recipe(tree) for tree in self.recipes))

    def stages(self) -> list[PlannedStage]:
        """The stages, with inputs opened in this process."""
        pipeline = self.pipeline()
        parts = zip(pipeline.stages, self.features, self.data_sha256, strict=True)
        return [
            PlannedStage(
                inputs=StageInputs(recipe, features_sha256=features),
                data_sha256=data_sha256,
                fit_name=self.name,
                first_micro_batch=pipeline.start(number),
            )
            for number, (recipe, features, data_sha256) in enumerate(parts)
        ]
