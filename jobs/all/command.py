"""`blip3o all RECIPE [--set key=value …]`: index, tokenizer, encode, train, export, evaluate, one after another.

What is done is skipped, so the command is given again after a stop, or after a change of the data. Each step looks at
its own results in the store, and by what they were made; there is no list of steps done.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from blip3o import storage
from blip3o.config.pipeline import TrainingPipeline
from blip3o.runs.paths import evaluation_uri
from jobs.common import RecipeName, StageOverrides, entry_point, open_pipeline

if TYPE_CHECKING:
    from blip3o.train.preflight.missing import Verb

PREPARING: tuple["Verb", ...] = ("index", "tokenizer", "encode")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the recipe. `reason` says why there is nothing to do; where it returns None, `run` does it."""

    name: str
    reason: Callable[[], str | None]
    run: Callable[[], object]


def steps(pipeline: TrainingPipeline, recipe: str, overrides: list[str], *, bundle: str) -> Iterator[Step]:
    """The steps, in order. Reasons are asked for when their turn comes: each depends on the steps before it."""
    yield from (_preparing(verb, pipeline, recipe, overrides) for verb in PREPARING)
    yield _training(pipeline)
    yield _exporting(pipeline, bundle)
    yield _evaluating(pipeline, bundle)


def run_steps(todo: Iterator[Step], tell: Callable[[str], None]) -> None:
    """Runs what is not done, and reports each step in a line. Raises what a step raises: the next ones need it."""
    for step in todo:
        reason = step.reason()
        if reason is not None:
            tell(f"{step.name}: skipped ({reason})")
            continue
        tell(f"{step.name}: begins")
        began = time.monotonic()
        step.run()
        tell(f"{step.name}: done in {time.monotonic() - began:.0f} s")


def _preparing(verb: "Verb", pipeline: TrainingPipeline, recipe: str, overrides: list[str]) -> Step:
    from jobs.commands.prepare import run_verb, verbs_to_run

    def reason() -> str | None:
        return None if verb in verbs_to_run(pipeline, recipe, overrides) else _NOT_NEEDED[verb]

    return Step(name=verb, reason=reason, run=lambda: run_verb(verb, pipeline))


_NOT_NEEDED = {
    "index": "every source has its index",
    "tokenizer": "it is there",
    "encode": "no stage that is not finished trains on stored features",
}


def _training(pipeline: TrainingPipeline) -> Step:
    from blip3o.runs.results import is_finished
    from jobs.training.run import train_pipeline

    def reason() -> str | None:
        if not all(is_finished(stage.run.storage, stage.run.name) for stage in pipeline.stages):
            return None
        train_pipeline(pipeline)  # raises if the results are of another recipe or of other data
        return "every stage has finished"

    return Step(name="train", reason=reason, run=lambda: train_pipeline(pipeline, report=print))


def _exporting(pipeline: TrainingPipeline, bundle: str) -> Step:
    """The same bundle is not written again, and another one not replaced: `export` looks."""
    from blip3o.train.export import export

    last = pipeline.stages[-1]
    runs = dict.fromkeys(run for stage in pipeline.stages for run in (*stage.stage.start_from, stage.run.name))
    return Step(name="export", reason=lambda: None, run=lambda: print(export(last, list(runs), bundle)))


def _evaluating(pipeline: TrainingPipeline, bundle: str) -> Step:
    from blip3o.evaluate.heldout.evaluation import evaluate, is_evaluated

    last = pipeline.stages[-1]
    out = evaluation_uri(last.run.storage, pipeline.name)

    def reason() -> str | None:
        if not last.evaluate.sources:
            return "the recipe names no held-out sources: evaluate.sources"
        return f"scores of this bundle are in {out}" if is_evaluated(last, bundle, out) else None

    def run() -> None:
        evaluate(last, bundle, out)
        print(f"written to {out}: evaluation.json, answers.jsonl, grid.png, report.html")

    return Step(name="evaluate", reason=reason, run=run)


def command(
    recipe: RecipeName,
    *,
    overrides: StageOverrides,
    out: Annotated[
        str | None, typer.Option(metavar="URI", help="Folder of the bundle (NAME/bundle below run.storage).")
    ] = None,
) -> None:
    """Index, train and evaluate a recipe from shards to scores; run it again to resume."""
    pipeline = open_pipeline(recipe, overrides, dry_run=False)
    runs = pipeline.stages[0].run.storage
    bundle = out or storage.join(runs, pipeline.name, "bundle")
    run_steps(steps(pipeline, recipe, overrides, bundle=bundle), lambda line: print(line, flush=True))


main = entry_point("all", command)
