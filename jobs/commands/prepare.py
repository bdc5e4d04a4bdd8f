"""What `blip3o train` does before it trains: lists everything that is missing, or makes it with `--prepare`."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.recipe import Recipe
from blip3o.config.recipe_files import trained_runs
from blip3o.errors import ConfigError
from blip3o.runs.results import is_finished

if TYPE_CHECKING:
    from blip3o.train.preflight.missing import Missing, Verb

_PLACES = ("data.root=", "run.storage=")  # overrides that the commands for other recipes share


def require_prepared(pipeline: TrainingPipeline, reference: str, overrides: Sequence[str], *, prepare: bool) -> None:
    """Returns if all that the stages read is there, or could be made. `reference` and `overrides` made the pipeline.

    Raises `ConfigError` that names everything missing with the commands that make it; with `prepare`, only if some of
    it cannot be made from the recipe.
    """
    from blip3o.train.preflight.missing import find_missing  # 2 s: torch

    words = [reference, *(word for item in overrides for word in ("--set", item))]
    missing = find_missing(pipeline, _trained_by(reference, overrides))
    if not prepare or any(item.verb is None for item in missing):
        _refuse(missing, words)
        return
    for verb in _verbs(pipeline, missing):
        print(f"preparing: {_line(verb, words)}", flush=True)
        run_verb(verb, pipeline)


def verbs_to_run(pipeline: TrainingPipeline, reference: str, overrides: Sequence[str]) -> "list[Verb]":
    """The verbs that `require_prepared` would run. Raises as it does if something cannot be made from the recipe."""
    from blip3o.train.preflight.missing import find_missing  # 2 s: torch

    missing = find_missing(pipeline, _trained_by(reference, overrides))
    _refuse([item for item in missing if item.verb is None], [])
    return _verbs(pipeline, missing)


def _trained_by(reference: str, overrides: Sequence[str]) -> dict[str, str]:
    """The command that trains each run that a recipe is known to need."""
    places = [word for item in overrides if item.startswith(_PLACES) for word in ("--set", item)]
    return {run: f"`{_line('train', [stage, *places])}`" for run, stage in trained_runs(reference).items()}


def _refuse(missing: "Sequence[Missing]", words: Sequence[str]) -> None:
    """Raises `ConfigError` if anything is missing."""
    if not missing:
        return
    fixes = dict.fromkeys(item.fix or f"`{_line(item.verb or '', words)}`" for item in missing)
    made = [item.verb for item in missing if item.verb]
    hint = f" (--prepare runs {', '.join(made)})" if made else ""
    facts = "; ".join(item.what for item in missing)
    raise ConfigError(f"not ready to train: {facts}. In this order{hint}: " + "; ".join(fixes))


def _line(verb: str, words: Sequence[str]) -> str:
    return shlex.join(["blip3o", verb, *words])


def _verbs(pipeline: TrainingPipeline, missing: "Sequence[Missing]") -> "list[Verb]":
    """What to run, in order. Features are always completed: what is stored is left as it is."""
    verbs: dict[Verb, None] = {item.verb: None for item in missing if item.verb and item.verb != "encode"}
    return [*verbs, "encode"] if _cached(pipeline) else [*verbs]


def _cached(pipeline: TrainingPipeline) -> list[Recipe]:
    """The stages that are going to train on stored features."""
    stages = [recipe for recipe in pipeline.stages if recipe.data.features == "cache"]
    return [recipe for recipe in stages if not is_finished(recipe.run.storage, recipe.run.name)]


def run_verb(verb: "Verb", pipeline: TrainingPipeline) -> None:
    """As the command of that name. Raises as it does."""
    from blip3o.data.text.tokenizer_training import train_tokenizer
    from jobs.encode import encode
    from jobs.index import index, stages_with_new_sources

    if verb == "index":
        for recipe in stages_with_new_sources(pipeline):
            index(recipe)
    elif verb == "tokenizer":
        train_tokenizer(pipeline.stages[0])
    else:
        for recipe in _cached(pipeline):
            encode(recipe)
