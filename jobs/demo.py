"""The whole system on one machine: `blip3o demo` in minutes, `blip3o demo --full` in half an hour.

`Demo.run` is the list of steps: store → data sets → index → tokenizer → five stages → bundle → evaluation → HTTP server
→ everything stopped. Each step is the job that a cluster would run, with the same recipes, and each is resumable: a
demo that was killed resumes where it stopped, and one that has finished is only reported again.
"""

import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip3o import log, settings
from blip3o.config.load import dump
from blip3o.config.pipeline import TrainingPipeline, load_pipeline
from blip3o.config.recipe import Recipe
from blip3o.errors import ConfigError
from cluster.local_s3 import LocalS3
from jobs.commands.demo_console import LOG, SHOWN, STEPS, closing_lines, say, step
from jobs.commands.demo_store import BASE, BUCKET, BUNDLE, FOLDER, STORE
from jobs.commands.progress import bar
from jobs.common import UsageError, entry_point, join_ray, leave_ray, program_path

if TYPE_CHECKING:
    from blip3o.evaluate.heldout.evaluation import Evaluation

logger = logging.getLogger(__name__)

PLACES = (f"data.root={BASE}/data", f"run.storage={BASE}/runs")
STAGES = ("encoder", "understand", "generate", "instruct", "decoder")  # of the shipped pipelines, in their order
EVALUATED = ("understanding", "generation", "scenes", "held_out", "provenance")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of a demo: the pipeline's recipe, numbers of scenes, and overrides for every stage.

    `suite_items` held-out scenes are generated and judged by GenEval's rules (`jobs.evaluation.demo_scores`), which
    takes half a minute for 30; 0 omits that.
    """

    recipe: str = "tiny"
    scenes_train: int
    scenes_heldout: int
    curated: int
    suite_items: int
    overrides: tuple[str, ...] = ()


USUAL = Scale(scenes_train=6000, scenes_heldout=400, curated=600, suite_items=120)
FULL = Scale(
    recipe="tiny-full",
    scenes_train=12000,
    scenes_heldout=1000,
    curated=2000,
    suite_items=240,
)
QUICK = Scale(
    scenes_train=200,
    scenes_heldout=60,
    curated=64,
    suite_items=12,
    overrides=(
        "model.preset=nano",
        "optim.steps=6",
        "optim.warmup_steps=1",
        "optim.micro_batch_size=8",
        "checkpoint.every=3",
        "evaluate.questions=24",
        "evaluate.images=12",
    ),
)


def run_demo(out: Path, *, scale: Scale, fresh: bool) -> None:
    """Runs a demo in a folder and prints where to look. `fresh` deletes what an earlier demo wrote there.

    Raises `ConfigError` if `fresh` would delete a folder that is not a demo's.
    """
    if fresh and out.is_dir() and any(out.iterdir()):
        if not (out / STORE).is_dir():
            raise ConfigError(f"--fresh deletes {out}, which holds no demo ({STORE}/ is missing): give another --out")
        shutil.rmtree(out)
    _make_folder(out)
    log.divert(out / LOG, shown=SHOWN)
    say(f"{len(STEPS)} steps. Ctrl-C stops them, the same command continues. Log: {out / LOG}")
    demo = Demo(out=out, scale=scale)
    with redirect_stdout(sys.stderr):  # what the jobs print goes to the log, too
        demo.run()
    for line in closing_lines(demo.summary, out, program=program_path()):
        say(line)


@dataclass
class Demo:
    """One demo in a folder. `summary` grows as steps finish."""

    out: Path
    scale: Scale
    summary: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """All steps, in order; writes summary.json, report.html and grid.png into the folder."""
        began = time.monotonic()
        with self._object_store():
            self._make_data_sets()
            with _ray():
                self._index()
                self._train_tokenizer()
                self._train()
                self._export()
                evaluation = self._evaluate()
                self._score_suite(evaluation)
                self._serve()
            self.summary["seconds_total"] = round(time.monotonic() - began, 1)
            self._write_report(evaluation)

    def pipeline(self) -> TrainingPipeline:
        """The shipped pipeline with this demo's overrides."""
        return load_pipeline(self.scale.recipe, [*PLACES, *self.scale.overrides])

    def recipe(self, stage: str) -> Recipe:
        """The recipe of one stage."""
        return {recipe.stage.name: recipe for recipe in self.pipeline().stages}[stage]

    @contextmanager
    def _object_store(self) -> Iterator[None]:
        with LocalS3(data_dir=self.out / STORE) as store:
            settings.override(store.environment)
            store.create_bucket(BUCKET)
            self.summary["store"] = BASE
            yield

    def _make_data_sets(self) -> None:
        from blip3o.data.sets.curated import build_curated
        from blip3o.data.sets.scenes import build_scenes

        scenes, curated = f"{BASE}/data/scenes", f"{BASE}/data/curated"
        with step("data sets", self.summary), bar("scenes") as progress:
            made = build_scenes(
                scenes, train=self.scale.scenes_train, heldout=self.scale.scenes_heldout, on_progress=progress
            )
            chosen = build_curated(curated, sets=[scenes], samples=self.scale.curated)
        self.summary["samples"] = {"scenes": made.counts, "curated": chosen.counts}

    def _index(self) -> None:
        from jobs.index import index, stages_with_new_sources

        with step("index", self.summary):
            for recipe in stages_with_new_sources(self.pipeline()):
                index(recipe)

    def _train_tokenizer(self) -> None:
        from blip3o.data.text.tokenizer_training import train_tokenizer

        with step("tokenizer", self.summary):
            train_tokenizer(self.recipe("encoder"))

    def _train(self) -> None:
        from jobs.training.run import train_pipeline

        with step("train", self.summary):
            results = train_pipeline(self.pipeline())
        self.summary["stages"] = {result["stage"]: result["summary"] for result in results}

    def _export(self) -> None:
        """The bundle in the store, and a copy that is used without it."""
        from blip3o.bundle.copying import copy_bundle
        from blip3o.train.export import export

        with step("export", self.summary):
            runs = [recipe.run.name for recipe in self.pipeline().stages]
            export(self.recipe("decoder"), runs, BUNDLE, overwrite=True)
            copy_bundle(BUNDLE, str(self.out / "bundle"))

    def _evaluate(self) -> "Evaluation":
        from blip3o.evaluate.heldout.evaluation import evaluate

        with step("evaluate", self.summary):
            evaluation = evaluate(self.recipe("decoder"), BUNDLE, f"{BASE}/evaluation/demo")
        scores = evaluation.scores
        self.summary |= {key: scores[key] for key in EVALUATED if scores.get(key)}
        return evaluation

    def _score_suite(self, evaluation: "Evaluation") -> None:
        """Scenes by GenEval's rules, and understanding before and after the later stages."""
        from jobs.evaluation import demo_scores

        with step("proof", self.summary):
            if self.scale.suite_items:
                folder = f"{BASE}/evaluation/demo-suites"
                scores = demo_scores.score_scenes(BUNDLE, folder, items=self.scale.suite_items)
                self.summary["scenes"] = scores | {"by_parts": evaluation.scores["scenes"]}
            understand = self.recipe("understand").run.name
            before = demo_scores.score_understanding_before(
                self.recipe("decoder"), [understand], f"{BASE}/bundles/demo-understand", evaluation
            )
            self.summary["understanding"] = evaluation.scores["understanding"] | {"before_generate": before}

    def _serve(self) -> None:
        from openai import OpenAI

        from cluster.ports import free_ports
        from jobs.serve import start
        from serve.smoke import query_server

        with step("serve", self.summary):
            port = free_ports(1)[0]
            handle = start(BUNDLE, port=port)
            try:
                client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
                self.summary["served"] = query_server(client, self.out / "served.png")
            finally:
                handle.stop()

    def _write_report(self, evaluation: "Evaluation") -> None:
        from blip3o.evaluate.heldout.reasons import null_reasons
        from blip3o.evaluate.reports.heldout import write_report
        from blip3o.runs.rows import rows_of

        self.summary["reasons"] = null_reasons(self.summary)
        evaluation.images.grid.save(self.out / "grid.png", optimize=True)
        metrics: dict[str, list[dict[str, Any]]] = {name: rows_of(self.recipe(name)) for name in STAGES}
        recipes = {recipe.stage.name: dump(recipe) for recipe in self.pipeline().stages}
        write_report(
            self.out / "report.html",
            summary=self.summary,
            metrics=metrics,
            images=evaluation.images,
            recipes=recipes,
        )
        (self.out / "summary.json").write_text(json.dumps(self.summary, indent=1), encoding="utf-8")


def _make_folder(out: Path) -> None:
    """Raises `ConfigError` if it cannot be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be made a folder ({error.strerror}): give another one") from error


@contextmanager
def _ray() -> Iterator[None]:
    """Joins or starts Ray, and leaves or stops it afterwards."""
    try:
        join_ray()
        yield
    finally:
        leave_ray()


def command(
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the store, the summary and the report (runs/demo; runs/demo-full).")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps of everything, to see that it works.")] = False,
    full: Annotated[bool, typer.Option("--full", help="The recipe for half an hour, tiny-full.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete an earlier demo in --out and start over.")] = False,
) -> None:
    """Train and serve a small unified model on this machine, from shards in an S3 store to an answer over HTTP.

    A demo that was stopped resumes where it was; one that has finished is only reported again.
    """
    if quick and full:
        raise UsageError("--quick and --full are two sizes: give one of them")
    scale = QUICK if quick else FULL if full else USUAL
    run_demo(out or (Path("runs/demo-full") if full else FOLDER), scale=scale, fresh=fresh)


main = entry_point("demo", command)

if __name__ == "__main__":
    sys.exit(main())
