"""The main job on one machine: `blip3o demo`, in minutes, and `blip3o demo --full`, in an hour.

Store up → data sets → index → tokenizer → five stages → bundle → evaluation → served over HTTP → everything stopped.
Each step is the job that a cluster would run, on the same recipes, and each is resumable: a demo that was killed goes
on where it stopped, and one that has finished only reports.
"""

import base64
import io
import json
import logging
import multiprocessing
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from blip3o import settings
from blip3o.config.pipeline import TrainingPipeline, load_pipeline
from blip3o.config.recipe import Recipe
from blip3o.errors import ConfigError, ServiceError
from cluster.local_s3 import LocalS3
from jobs.commands.progress import bar
from jobs.common import UsageError, entry_point, join_ray, leave_ray

if TYPE_CHECKING:
    from blip3o.evaluate.heldout.evaluation import Evaluation

logger = logging.getLogger(__name__)
console = Console(stderr=True, highlight=False)

BUCKET = "blip3o"
STORE = "store"  # the folder of the object store, in that of the demo
BASE = f"s3://{BUCKET}"
STAGES = ("encoder", "understand", "generate", "instruct", "decoder")  # of the shipped pipelines, in their order
EVALUATED = ("understanding", "generation", "scenes", "provenance")
PROMPT = "a red circle"
QUESTION = "What color is the circle?"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a demo is: the pipeline's recipe, scenes, side of the emoji in pixels, and overrides for every stage.

    `proved`: held-out scenes that are drawn and judged by GenEval's rules (`jobs.evaluation.proof`), which takes half a
    minute for 30; 0 leaves that out.
    """

    recipe: str = "tiny"
    scenes_train: int
    scenes_heldout: int
    emoji: bool
    emoji_size: int | None
    curated: int
    proved: int
    overrides: tuple[str, ...] = ()


USUAL = Scale(scenes_train=4000, scenes_heldout=400, emoji=True, emoji_size=64, curated=512, proved=0)
FULL = Scale(
    recipe="tiny-full",
    scenes_train=12000,
    scenes_heldout=1000,
    emoji=False,
    emoji_size=None,
    curated=2000,
    proved=240,
)
QUICK = Scale(
    scenes_train=200,
    scenes_heldout=60,
    emoji=False,
    emoji_size=None,
    curated=64,
    proved=12,
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


@dataclass
class Demo:
    """One demo in a folder. `summary` grows as steps finish."""

    out: Path
    scale: Scale
    summary: dict[str, Any] = field(default_factory=dict)
    emoji: bool = True

    def run(self) -> None:
        """All steps, in order; writes summary.json, report.html and grid.png into the folder."""
        began = time.monotonic()
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--out {self.out} cannot be made a folder ({error.strerror}): give another one"
            ) from error
        with LocalS3(data_dir=self.out / STORE) as store:
            settings.override(store.environment)
            store.create_bucket(BUCKET)
            self.summary["store"] = BASE
            self._make_sets()
            try:
                join_ray()
                evaluation = self._train_and_evaluate()
                self._serve(evaluation)
            finally:
                leave_ray()
            self.summary["seconds_total"] = round(time.monotonic() - began, 1)
            self._write(evaluation)

    def pipeline(self) -> TrainingPipeline:
        """The shipped pipeline with this demo's overrides."""
        name, overrides = self.scale.recipe, list(self.scale.overrides)
        shipped = load_pipeline(name, overrides)
        if self.emoji:
            return shipped
        without = [f"{recipe.stage.name}:{item}" for recipe in shipped.stages for item in _without_emoji(recipe)]
        return load_pipeline(name, overrides + without)

    def recipe(self, stage: str) -> Recipe:
        """The recipe of one stage."""
        return {recipe.stage.name: recipe for recipe in self.pipeline().stages}[stage]

    def _make_sets(self) -> None:
        from blip3o.data.sets.curated import build_curated
        from blip3o.data.sets.scenes import build_scenes

        counts: dict[str, Any] = {}
        # Spawned: this process has threads. The set that is longer in the making shows its bar.
        with (
            _step("data sets", self.summary),
            ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as beside,
        ):
            scenes = beside.submit(
                build_scenes,
                f"{BASE}/data/scenes",
                train=self.scale.scenes_train,
                heldout=self.scale.scenes_heldout,
            )
            emoji = self._make_emoji() if self.scale.emoji else None
            counts["scenes"] = scenes.result().counts
            self.emoji = emoji is not None
            if emoji is not None:
                counts["emoji"] = emoji
            sets = [f"{BASE}/data/{name}" for name in counts]
            counts["curated"] = build_curated(f"{BASE}/data/curated", sets=sets, samples=self.scale.curated).counts
        self.summary["samples"] = counts

    def _make_emoji(self) -> dict[str, int] | None:
        """The numbers of samples; None where the pictures cannot be had."""
        from blip3o.data.sets.emoji import build_emoji

        try:
            with bar("emoji") as progress:
                return build_emoji(f"{BASE}/data/emoji", size=self.scale.emoji_size, on_progress=progress).counts
        except ServiceError as error:
            console.print(f"[yellow]without emoji, with scenes alone: {error}[/]")
            return None

    def _train_and_evaluate(self) -> "Evaluation":
        from blip3o.data.text.tokenizer_training import train_tokenizer
        from blip3o.evaluate.heldout.evaluation import evaluate
        from blip3o.train.export import export
        from jobs.index import index, with_own_sources
        from jobs.training.run import train_pipeline

        with _step("index", self.summary):
            for recipe in with_own_sources(self.pipeline()):
                index(recipe)
        with _step("tokenizer", self.summary):
            train_tokenizer(self.recipe("encoder"))
        with _step("train", self.summary):
            results = train_pipeline(self.pipeline())
        self.summary["stages"] = {result["stage"]: result["summary"] for result in results}
        with _step("export", self.summary):
            runs = [recipe.run.name for recipe in self.pipeline().stages]
            bundle = export(self.recipe("decoder"), runs, f"{BASE}/bundles/demo")
        with _step("evaluate", self.summary):
            evaluation = evaluate(self.recipe("decoder"), bundle, f"{BASE}/evaluation/demo")
        scores = evaluation.scores
        self.summary |= {key: scores[key] for key in EVALUATED if scores.get(key)}
        with _step("proof", self.summary):
            self._prove(bundle, evaluation)
        return evaluation

    def _prove(self, bundle: str, evaluation: "Evaluation") -> None:
        from jobs.evaluation import proof

        if self.scale.proved:
            proved = proof.scenes(bundle, f"{BASE}/evaluation/demo-suites", items=self.scale.proved)
            self.summary["scenes"] = proved | {"by_parts": evaluation.scores["scenes"]}
        understand = self.recipe("understand").run.name
        before = proof.understanding_before(
            self.recipe("decoder"), [understand], f"{BASE}/bundles/demo-understand", evaluation
        )
        self.summary["understanding"] = evaluation.scores["understanding"] | {"before_generate": before}

    def _serve(self, evaluation: "Evaluation") -> None:
        from openai import OpenAI

        from cluster.ports import free_ports
        from jobs.serve import start

        with _step("serve", self.summary):
            port = free_ports(1)[0]
            handle = start(f"{BASE}/bundles/demo", port=port)
            try:
                client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
                self.summary["served"] = two_requests(client, self.out)
            finally:
                handle.stop()

    def _write(self, evaluation: "Evaluation") -> None:
        from blip3o.evaluate.reports.heldout import write_report
        from blip3o.runs.rows import rows_of

        evaluation.images.grid.save(self.out / "grid.png", optimize=True)
        metrics: dict[str, list[dict[str, Any]]] = {name: rows_of(self.recipe(name)) for name in STAGES}
        write_report(self.out / "report.html", summary=self.summary, metrics=metrics, images=evaluation.images)
        (self.out / "summary.json").write_text(json.dumps(self.summary, indent=1), encoding="utf-8")


def _without_emoji(recipe: Recipe) -> Iterator[str]:
    """Overrides that leave a stage's emoji sources out, and nothing else."""
    for key, sources in (("data.sources", recipe.data.sources), ("evaluate.sources", recipe.evaluate.sources)):
        kept = [source.model_dump(mode="json") for source in sources if not source.shards.startswith("emoji/")]
        if len(kept) < len(sources):
            yield f"{key}={json.dumps(kept)}"


def two_requests(client: Any, out: Path) -> dict[str, Any]:  # noqa: ANN401 - an openai.OpenAI
    """Draws an image over HTTP and asks about a picture whose answer is known; both by the real OpenAI client."""
    from blip3o.data.images.decode import open_image
    from blip3o.data.sets.scenes_draw import render
    from blip3o.data.sets.scenes_world import Scene, SceneObject

    model = client.models.list().data[0].id
    drawn = client.images.generate(model=model, prompt=PROMPT, response_format="b64_json", extra_body={"seed": 1})
    data = base64.b64decode(drawn.data[0].b64_json)
    image = open_image(data)
    image.save(out / "served.png")
    circle = SceneObject(shape="circle", color="red", box=(14, 14, 50, 50))
    scene = Scene(size=64, ground="light grey", family="single_object", relation=None, objects=(circle,))
    buffer = io.BytesIO()
    render(scene).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    reply = client.chat.completions.create(model=model, messages=[{"role": "user", "content": parts}])
    text = reply.choices[0].message.content or ""
    return {
        "prompt": PROMPT,
        "image_bytes": len(data),
        "image_size": list(image.size),
        "question": QUESTION,
        "chat_reply": text,
        "ok": bool(text) and image.size[0] > 0,
    }


@contextmanager
def _step(name: str, summary: dict[str, Any]) -> Iterator[None]:
    """Announces a step and keeps its wall-clock seconds under `steps`."""
    console.print(f"[bold]── {name}[/]")
    began = time.monotonic()
    yield
    seconds = round(time.monotonic() - began, 1)
    summary.setdefault("steps", {})[name] = seconds
    console.print(f"   {name}: {seconds} s")


def run_demo(out: Path, *, scale: Scale, fresh: bool) -> None:
    """Runs a demo into a folder and says where to look. `fresh` forgets what an earlier one left there.

    Raises `ConfigError` if `fresh` would delete a folder that is not a demo's.
    """
    if fresh and out.is_dir() and any(out.iterdir()):
        if not (out / STORE).is_dir():
            raise ConfigError(f"--fresh deletes {out}, which holds no demo ({STORE}/ is not there): give another --out")
        shutil.rmtree(out)
    demo = Demo(out=out, scale=scale)
    demo.run()
    console.print(f"[bold green]done in {demo.summary['seconds_total']} s[/]  {verdict(demo.summary)}")
    console.print(f"   {out / 'summary.json'}   {out / 'report.html'}   {out / 'grid.png'}")


def verdict(summary: dict[str, Any]) -> str:
    """The demo in one line of figures beside chance."""
    understanding, generation, scenes = (summary[name] for name in ("understanding", "generation", "scenes"))
    before = understanding["before_generate"]["accuracy"]
    exact = scenes["overall" if "by_parts" in scenes else "all_correct"]
    return (
        f"understanding {understanding['accuracy']:.2f} (before generate {before:.2f}, "
        f"chance {understanding['chance']:.2f}), scenes {exact:.2f} "
        f"(shuffled {scenes['shuffled']:.2f}, bound {scenes['upper_bound']:.2f}), "
        f"retrieval R@5 {generation['r5']:.2f} "
        f"(chance {generation['chance_r5']:.2f}, shuffled {generation['shuffled_r5']:.2f})"
    )


def command(
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the store, the summary and the report (runs/demo; runs/demo-full).")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps of everything, to see that it works.")] = False,
    full: Annotated[bool, typer.Option("--full", help="The recipe for an hour, tiny-full.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget an earlier demo in --out and start over.")] = False,
) -> None:
    """Train and serve a small unified model on this machine, from shards in an S3 store to an answer over HTTP.

    A demo that was stopped goes on where it was; one that has finished is only reported again.
    """
    if quick and full:
        raise UsageError("--quick and --full are two sizes: give one of them")
    scale = QUICK if quick else FULL if full else USUAL
    run_demo(out or Path("runs/demo-full" if full else "runs/demo"), scale=scale, fresh=fresh)


main = entry_point("demo", command)

if __name__ == "__main__":
    sys.exit(main())
