"""Several stages as one run: recipes in their order, trained by one group of workers.

A pipeline file names its stages by their recipe files, which lie beside it:

    pipeline:
      name: tiny
      stages: [tiny-encoder.yaml, tiny-understand.yaml]

A file that is a recipe by itself is a pipeline of one stage, under the recipe's own name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from blip3o.config.load import explain, load_recipe, read_tree
from blip3o.config.model import Frozen
from blip3o.config.recipe import Recipe
from blip3o.errors import ConfigError

# What the stages of a pipeline share, since the same workers train them one after the other.
_SHARED = (
    "run.storage",
    "parallel.workers",
    "parallel.device",
    "parallel.cpus_per_worker",
    "parallel.data_actors",
    "parallel.data_threads",
    "parallel.cpus_per_data_actor",
    "parallel.data_labels",
    "parallel.worker_labels",
    "parallel.encoder_labels",
    "parallel.encoder_actors",
    "parallel.cpus_per_encoder_actor",
    "parallel.gpus_per_encoder_actor",
    "checkpoint.max_failures",
)


class PipelineConfig(Frozen):
    """A pipeline file's one section."""

    name: str = Field(description="name of the run: submitting it again resumes it")
    stages: tuple[str, ...] = Field(min_length=1, description="recipe files of the stages, relative to this file")


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Stages in the order of their training; each keeps its result under its own `run.name`."""

    name: str
    stages: tuple[Recipe, ...]

    def __post_init__(self) -> None:
        """Raises `ConfigError` if two stages have the same run.name, differ in what one group of workers shares, or
        call other shards by the same name.
        """
        names = [recipe.run.name for recipe in self.stages]
        if len(set(names)) != len(names):
            raise ConfigError(f"pipeline '{self.name}': run.name repeats among its stages: {', '.join(names)}")
        for key in _SHARED:
            values = {recipe.run.name: _value(recipe, key) for recipe in self.stages}
            if any(value != values[names[0]] for value in values.values()):
                found = ", ".join(f"{run}: {value}" for run, value in values.items())
                raise ConfigError(f"pipeline '{self.name}': the stages differ in {key} ({found}): give all the same")
        self._require_one_index_a_name()

    def _require_one_index_a_name(self) -> None:
        shards: dict[tuple[str, str], str] = {}
        for recipe in self.stages:
            for source in (*recipe.data.sources, *recipe.evaluate.sources):
                known = shards.setdefault((recipe.data.root, source.name), source.shards)
                if known != source.shards:
                    raise ConfigError(
                        f"pipeline '{self.name}': source '{source.name}' is {known} and {source.shards}, and a name "
                        "has one index: give them two names"
                    )

    @classmethod
    def of(cls, recipe: Recipe) -> "Pipeline":
        """One stage as a pipeline of its own name."""
        return cls(name=recipe.run.name, stages=(recipe,))

    @property
    def ends(self) -> tuple[int, ...]:
        """For each stage the micro-batches of it and of all before: micro-batches are numbered through the pipeline."""
        ends = [0]
        for recipe in self.stages:
            ends.append(ends[-1] + recipe.optim.steps * recipe.optim.micro_batches)
        return tuple(ends[1:])

    def start(self, stage: int, step: int = 0) -> int:
        """The number of the first micro-batch of a stage's step."""
        begin = self.ends[stage - 1] if stage else 0
        return begin + step * self.stages[stage].optim.micro_batches


def load_pipeline(path: Path, overrides: Sequence[str]) -> Pipeline:
    """Reads a pipeline or a recipe file. An override `key=value` holds for every stage, `STAGE:key=value` for one.

    Raises `ConfigError` as `load_recipe` does, and for an override of a stage that the pipeline does not have.
    """
    tree = read_tree(path)
    if "pipeline" not in tree:
        return Pipeline.of(load_recipe(path, list(overrides)))
    beside = [str(key) for key in tree if key != "pipeline"]
    if beside:
        raise ConfigError(f"{path} is a pipeline, and has {', '.join(beside)} beside it: put that into its stages")
    try:
        config = PipelineConfig.model_validate(tree["pipeline"])
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(explain(item) for item in error.errors())) from error
    files = [path.parent / name for name in config.stages]
    names = [load_recipe(file, []).stage.name for file in files]
    chosen = [_chosen(item, names) for item in overrides]
    stages = [
        load_recipe(file, [item for stage, item in chosen if stage in (None, name)])
        for file, name in zip(files, names, strict=True)
    ]
    return Pipeline(name=config.name, stages=tuple(stages))


def _chosen(override: str, names: Sequence[str]) -> tuple[str | None, str]:
    """(stage or None for all of them, override)."""
    stage, colon, rest = override.partition(":")
    if not colon or "=" in stage:
        return None, override
    if stage not in names:
        raise ConfigError(f"override '{override}': the pipeline has no stage '{stage}' (stages: {', '.join(names)})")
    return stage, rest


def _value(recipe: Recipe, key: str) -> Any:  # noqa: ANN401 - whatever the field holds
    section, field = key.split(".")
    return getattr(getattr(recipe, section), field)
