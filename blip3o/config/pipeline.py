"""Training pipelines: stages that one group of workers trains in sequence, as one job.

`blip3o.config.recipe_files` describes the file format. A recipe of one stage is a pipeline with only that stage, under
the recipe's own name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3o.config.load import build_stages, dump
from blip3o.config.recipe import Recipe
from blip3o.config.recipe_files import Tree, read_stages
from blip3o.config.yaml_reader import dump_yaml
from blip3o.errors import ConfigError

# Keys that must be equal in all stages, since the same workers and data actors serve them all.
_SHARED = (
    "run.storage",
    "data.reader",
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


@dataclass(frozen=True, kw_only=True)
class TrainingPipeline:
    """Stages in training order; each stores its result under its own `run.name`."""

    name: str
    stages: tuple[Recipe, ...]

    def __post_init__(self) -> None:
        """Raises `ConfigError` if stages share a run.name, differ in a key that must be equal, or give one source name
        to different shards.
        """
        names = [recipe.run.name for recipe in self.stages]
        if len(set(names)) != len(names):
            raise ConfigError(
                f"pipeline '{self.name}': run.name repeats among its stages: {', '.join(names)}: leave it out"
            )
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
    def of(cls, recipe: Recipe) -> "TrainingPipeline":
        """A pipeline of one stage, under the name of its run."""
        return cls(name=recipe.run.name, stages=(recipe,))

    @property
    def ends(self) -> tuple[int, ...]:
        """For each stage, the number after its last micro-batch. Numbers run on through the whole pipeline."""
        ends = [0]
        for recipe in self.stages:
            ends.append(ends[-1] + recipe.optim.steps * recipe.optim.micro_batches)
        return tuple(ends[1:])

    def start(self, stage: int, step: int = 0) -> int:
        """The number of the first micro-batch of a stage's step."""
        begin = self.ends[stage - 1] if stage else 0
        return begin + step * self.stages[stage].optim.micro_batches


def load_pipeline(reference: str | Path, overrides: Sequence[str] = ()) -> TrainingPipeline:
    """Reads a pipeline, one stage of it, or a recipe; `reference` is as for `load_recipe`.

    An override `key=value` applies to every stage, `STAGE:key=value` to one. Raises `ConfigError` as `load_recipe`
    does, and for an override of an unknown stage.
    """
    found = read_stages(reference, overrides)
    stages = tuple(build_stages(found).values())
    if found.pipeline is None:
        return TrainingPipeline.of(stages[0])
    return TrainingPipeline(name=found.pipeline, stages=stages)


def dump_resolved(reference: str | Path, overrides: Sequence[str] = ()) -> str:
    """A recipe or pipeline with every value filled in, as YAML that loads to an equal one.

    Raises `ConfigError` as `load_pipeline` does.
    """
    found = read_stages(reference, overrides)
    recipes = build_stages(found)
    if found.pipeline is None:
        return "".join(dump(recipe) for recipe in recipes.values())
    TrainingPipeline(name=found.pipeline, stages=tuple(recipes.values()))  # checks that they fit together
    dumps = {key: recipe.model_dump(mode="json") for key, recipe in recipes.items()}
    shared = _shared_sections(list(dumps.values()))
    own = {key: _without(tree, shared) for key, tree in dumps.items()}
    return dump_yaml({**shared, "pipeline": {"name": found.pipeline, "stages": own}})


def _shared_sections(trees: Sequence[Tree]) -> Tree:
    """The fields that are equal in all stages, by section.

    Fields are compared whole, since a mapping of another `kind` replaces the one below it in a merge.
    """
    first, *others = trees
    sections = {
        section: {
            field: value
            for field, value in fields.items()
            if all((field, value) in other[section].items() for other in others)
        }
        for section, fields in first.items()
    }
    return {section: fields for section, fields in sections.items() if fields}


def _without(tree: Tree, shared: Tree) -> Tree:
    sections = {
        section: {field: value for field, value in fields.items() if field not in shared.get(section, {})}
        for section, fields in tree.items()
    }
    return {section: fields for section, fields in sections.items() if fields}


def _value(recipe: Recipe, key: str) -> Any:  # noqa: ANN401 - whatever the field holds
    section, field = key.split(".")
    return getattr(getattr(recipe, section), field)
