"""Scores a bundle on held-out data: `python -m jobs.evaluate RECIPE --bundle URI [--out URI] [--set key=value …]`.

Asks the questions and draws the prompts that the recipe's `evaluate` section chooses, and leaves `evaluation.json`
(every figure beside chance and its control), `answers.jsonl` (every reply as it was given), `grid.png` and
`report.html`. With `--suite NAME[,NAME] --target URI` in place of the recipe it runs benchmarks
(`jobs.evaluation.command`).
"""

import argparse
import hashlib
import io
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from blip3o import settings, storage
from blip3o.bundle.layout import SEAL
from blip3o.config.recipe import Recipe
from blip3o.evaluate.heldout.measure import (
    Drawings,
    OnDone,
    Pictures,
    Variants,
    ask,
    decode,
    draw,
    exchanged_images,
    first_rows,
    grid_sections,
    vary,
)
from blip3o.evaluate.heldout.samples import Chosen, choose
from blip3o.evaluate.metrics import exactness, retrieval, understanding
from blip3o.evaluate.metrics import feature_space as own
from blip3o.evaluate.metrics.understanding import MIN_CHOICES, AnswerRecord
from blip3o.evaluate.reports.grid import render_grid
from blip3o.evaluate.reports.heldout import AnsweredPicture, ReportImages, render_report
from blip3o.inference.pipeline import Blip3oPipeline
from jobs.common import run_job
from jobs.evaluation import command

WIDTH = 32  # rows of one batch
GRID_ROWS, GRID_COLUMNS = 4, 4  # prompts of each source, drawings of each prompt
GRID_TITLE = "What the model draws"
GRID_SUBTITLE = f"The first {GRID_ROWS} held-out prompts of each set in the order of the draw. Training never saw them."
NOT_COMPARABLE = "own judge, own feature space, own data: compare with chance and between runs only"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures (as in evaluation.json), and the pictures that go with them."""

    scores: dict[str, Any]
    images: ReportImages


def evaluate(recipe: Recipe, bundle_uri: str, out_uri: str) -> Evaluation:
    """Scores the bundle, writes the files below `out_uri` and returns what they hold.

    The result is a function of the bundle, the held-out data and the recipe's `evaluate` section. Raises `ConfigError`
    where no held-out source is named, `DataError` where they give too few samples, `BundleError` for what is not a
    bundle.
    """
    chosen = choose(recipe.data, recipe.evaluate)
    evaluation = _measure(recipe, _pipeline(recipe, bundle_uri), chosen, _bundle_provenance(bundle_uri))
    _write(evaluation, out_uri)
    return evaluation


def answers(recipe: Recipe, bundle_uri: str) -> list[AnswerRecord]:
    """What the bundle replies to the questions that `evaluate` asks, in their order. Raises as `evaluate` does."""
    questions = choose(recipe.data, recipe.evaluate).questions
    images = [question.item.image for question in questions]
    pipeline = _pipeline(recipe, bundle_uri)
    with _progress("questions", len(images)) as on_done:
        return ask(pipeline, questions, images=images, on_done=on_done)


def _pipeline(recipe: Recipe, bundle_uri: str) -> Blip3oPipeline:
    import torch

    from blip3o.bundle.reading import load_bundle
    from blip3o.device import select

    # Training is over: the cores that its workers had are free.
    torch.set_num_threads(recipe.parallel.max_workers * recipe.parallel.threads)
    return load_bundle(bundle_uri, device=select(recipe.parallel.device), batch_size=WIDTH)


def _measure(recipe: Recipe, pipeline: Blip3oPipeline, chosen: Chosen, provenance: dict[str, Any]) -> Evaluation:
    seed = recipe.evaluate.seed
    answered, understood = _ask(pipeline, chosen, seed)
    with _progress("drawings", len(chosen.items)) as on_done:
        drawings = draw(pipeline, chosen.items, seed=seed, on_done=on_done)
    scenes = [row for row, item in enumerate(drawings.items) if exactness.is_scene(item.record)]
    shown = first_rows(drawings.items, GRID_ROWS)
    rows = list(itertools.chain(*shown.values()))
    needed = sorted({*scenes, *rows})
    with _progress("pictures", len(needed)) as on_done:
        pictures = decode(pipeline, drawings, needed, on_done=on_done)
    variants = vary(pipeline, drawings, rows, columns=GRID_COLUMNS, seed=seed)
    sections = grid_sections(pipeline, drawings, pictures, shown=shown, variants=variants)
    scores = {
        "understanding": understood,
        "generation": _retrieval(drawings, seed),
        "own": _own(drawings, variants, seed),
        "scenes": _scenes(drawings, pictures, scenes, seed),
        "provenance": provenance | _provenance(recipe, pipeline, chosen),
    }
    grid = render_grid(sections, title=GRID_TITLE, subtitle=GRID_SUBTITLE)
    return Evaluation(scores=scores, images=ReportImages(grid=grid, answered=answered))


def _ask(
    pipeline: Blip3oPipeline, chosen: Chosen, seed: int
) -> tuple[tuple[AnsweredPicture, ...], dict[str, Any] | None]:
    """Every question with its reply, and their scores; `shuffled` is the accuracy with other pictures.

    The scores are None where the held-out data ask nothing.
    """
    if not chosen.questions:
        return (), None
    images = [question.item.image for question in chosen.questions]
    with _progress("questions", len(images)) as on_done:
        records = ask(pipeline, chosen.questions, images=images, on_done=on_done)
    closed = [question for question in chosen.questions if len(question.choices) >= MIN_CHOICES]
    with _progress("questions, other pictures", len(closed)) as on_done:
        control = ask(pipeline, closed, images=exchanged_images(closed, seed), on_done=on_done)
    answered = (AnsweredPicture(record=record, image=image) for record, image in zip(records, images, strict=True))
    shuffled = understanding.score(control, seed=seed)["accuracy"]
    return tuple(answered), understanding.score(records, seed=seed) | {"shuffled": shuffled}


def _retrieval(drawings: Drawings, seed: int) -> dict[str, Any]:
    generated, truth = (features.float().cpu().numpy() for features in (drawings.generated, drawings.truth))
    return retrieval.score(generated, truth, [item.source for item in drawings.items], seed=seed)


def _own(drawings: Drawings, variants: Variants, seed: int) -> dict[str, Any]:
    """Figures in the model's own features; the diversity is that of the grid's drawings, None of a single prompt."""
    generated, truth, several = (
        features.float().cpu().numpy() for features in (drawings.generated, drawings.truth, variants.features)
    )
    differing = own.diversity(several) if len(several) > 1 else None
    return own.alignment(generated, truth, seed=seed) | {"diversity": differing}


def _scenes(drawings: Drawings, pictures: Pictures, rows: list[int], seed: int) -> dict[str, Any] | None:
    """None where no held-out source holds scenes."""
    if not rows:
        return None
    return exactness.score(
        [drawings.items[row].record for row in rows],
        drawn=[pictures.drawn[row] for row in rows],
        decoded=[pictures.decoded[row] for row in rows],
        true=[drawings.items[row].image for row in rows],
        seed=seed,
    )


def _bundle_provenance(uri: str) -> dict[str, Any]:
    digest = hashlib.sha256(storage.read_bytes(storage.join(uri, SEAL))).hexdigest()
    return {"bundle": storage.normalize(uri), f"sha256 of {SEAL}": digest}


def _provenance(recipe: Recipe, pipeline: Blip3oPipeline, chosen: Chosen) -> dict[str, Any]:
    sampler = pipeline.model.config.sampler
    return {
        **{f"manifest of {name}": fingerprint for name, fingerprint in chosen.fingerprints.items()},
        "evaluation's seed": recipe.evaluate.seed,
        "sampler": f"{sampler.num_inference_steps} steps, guidance {sampler.guidance_scale:g}",
        "comparable with published benchmarks": f"no ({NOT_COMPARABLE})",
    }


def _write(evaluation: Evaluation, uri: str) -> None:
    report = render_report(summary=evaluation.scores, metrics={}, images=evaluation.images)
    answers = [json.dumps(asdict(item.record), ensure_ascii=False) for item in evaluation.images.answered]
    files = {
        "answers.jsonl": "\n".join([*answers, ""]).encode(),
        "grid.png": _png(evaluation.images.grid),
        "report.html": report.encode(),
        "evaluation.json": json.dumps(evaluation.scores, indent=1, ensure_ascii=False).encode(),
    }
    for name, data in files.items():
        storage.write_bytes(storage.join(uri, name), data)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@contextmanager
def _progress(label: str, total: int) -> Iterator[OnDone]:
    """A bar on stderr that the body advances."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"evaluate: {label}", total=total)
        yield lambda count: progress.advance(task, count)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", required=True, metavar="URI", help="the folder that jobs.export wrote")
    parser.add_argument("--out", metavar="URI", help="where the results go (default: evaluation/ of the recipe's run)")


def _run(recipe: Recipe, options: argparse.Namespace) -> None:
    out = options.out or storage.join(recipe.run.storage, recipe.run.name, "evaluation")
    scores = evaluate(recipe, options.bundle, out).scores
    print(json.dumps(scores, indent=1, ensure_ascii=False))
    print(f"written to {storage.normalize(out)}: evaluation.json, answers.jsonl, grid.png, report.html")


_HELP = "Score a bundle on held-out data. For benchmarks give --suite NAME --target URI instead (--suite NAME --help)."


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    arguments = sys.argv[1:] if argv is None else argv
    if any(argument.partition("=")[0] == "--suite" for argument in arguments):
        return command.main(arguments)
    return run_job("evaluate", _HELP, _run, argv, extend=_options)


if __name__ == "__main__":
    settings.configure_ray()
    sys.exit(main())
