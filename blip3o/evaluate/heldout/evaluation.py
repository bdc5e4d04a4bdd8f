"""Scores a bundle on held-out data: asks its questions, draws its prompts, and writes every figure with its controls.

`evaluate` leaves four files: `evaluation.json` (every figure next to chance and its control, and under `reasons` why
one is null), `answers.jsonl` (every reply verbatim), `grid.png` and `report.html`.
"""

import hashlib
import io
import itertools
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image

from blip3o import storage
from blip3o.bundle.layout import SEAL
from blip3o.bundle.reading import load_bundle
from blip3o.config.recipe import Recipe
from blip3o.device import select
from blip3o.evaluate.heldout import scene_accuracy
from blip3o.evaluate.heldout.apart import Apart, compare
from blip3o.evaluate.heldout.outputs import (
    DecodedImages,
    Drawings,
    Variants,
    ask,
    decode,
    draw,
    exchanged_images,
    vary,
)
from blip3o.evaluate.heldout.reader import EvaluationSamples, choose
from blip3o.evaluate.heldout.reasons import null_reasons
from blip3o.evaluate.heldout.showing import asked_sections, grid_sections, rows_to_show
from blip3o.evaluate.metrics import feature_space, retrieval, understanding
from blip3o.evaluate.metrics.understanding import MIN_CHOICES, AnswerRecord
from blip3o.evaluate.progress import progress_bar
from blip3o.evaluate.reports.grid import render_grid
from blip3o.evaluate.reports.heldout import AnsweredPicture, ReportImages, render_report
from blip3o.inference.pipeline import Blip3oPipeline
from blip3o.runs.paths import EVALUATION

WIDTH = 32  # rows of one batch
GRID_COLUMNS = 4  # drawings of each prompt
GRID_TITLE = "What the model draws"
GRID_SUBTITLE = "The first held-out prompts in the order of the draw: of scenes, one of each family. Held out: {kinds}."
NOT_COMPARABLE = "own judge, own feature space, own data: compare with chance and between runs only"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures (as in evaluation.json), and the images that go with them."""

    scores: dict[str, Any]
    images: ReportImages


def evaluate(recipe: Recipe, bundle_uri: str, out_uri: str) -> Evaluation:
    """Scores the bundle, writes the files below `out_uri`, and returns what they hold.

    The result is a function of the bundle, the held-out data and the recipe's `evaluate` section. Raises `ConfigError`
    where no held-out source is named, `DataError` where the sources give too few samples, `BundleError` for anything
    that is not a bundle.
    """
    samples = choose(recipe.data, recipe.evaluate)
    apart = compare(recipe.data, [*samples.items, *(question.item for question in samples.questions)])
    evaluation = _score(recipe, _pipeline(recipe, bundle_uri), samples, apart, _bundle_provenance(bundle_uri))
    _write(evaluation, out_uri)
    return evaluation


def is_evaluated(recipe: Recipe, bundle_uri: str, out_uri: str) -> bool:
    """Whether `evaluate` has written its files for this very bundle, these data and this `evaluate` section."""
    file = storage.join(out_uri, EVALUATION)
    if not storage.exists(file):
        return False
    found = json.loads(storage.read_bytes(file))["provenance"]
    expected = _bundle_provenance(bundle_uri) | _asked(recipe, choose(recipe.data, recipe.evaluate))
    return all(found.get(name) == value for name, value in expected.items())


def answers(recipe: Recipe, bundle_uri: str) -> list[AnswerRecord]:
    """The bundle's replies to the questions that `evaluate` asks, in the same order. Raises the same errors."""
    questions = choose(recipe.data, recipe.evaluate).questions
    images = [question.item.image for question in questions]
    pipeline = _pipeline(recipe, bundle_uri)
    with progress_bar("evaluate: questions", len(images)) as on_done:
        return ask(pipeline, questions, images=images, on_done=on_done)


def _pipeline(recipe: Recipe, bundle_uri: str) -> Blip3oPipeline:
    # Training has ended, so the cores of its workers are free.
    torch.set_num_threads(recipe.parallel.max_workers * recipe.parallel.threads)
    parallel = recipe.parallel
    return load_bundle(bundle_uri, device=select(parallel.device), batch_size=WIDTH, precision=parallel.precision)


def _score(
    recipe: Recipe, pipeline: Blip3oPipeline, samples: EvaluationSamples, apart: Apart, provenance: dict[str, Any]
) -> Evaluation:
    seed = recipe.evaluate.seed
    answered, understood = _ask(pipeline, samples, seed)
    with progress_bar("evaluate: drawings", len(samples.items)) as on_done:
        drawings = draw(pipeline, samples.items, seed=seed, on_done=on_done)
    scenes = [row for row, item in enumerate(drawings.items) if scene_accuracy.is_scene(item.record)]
    retrieved = _retrieval(drawings, seed)
    shown = rows_to_show(drawings.items, retrieved)
    rows = list(itertools.chain(*shown.values()))
    needed = sorted({*scenes, *rows})  # decoding is expensive: only scored scenes and the grid need images
    with progress_bar("evaluate: pictures", len(needed)) as on_done:
        decoded = decode(pipeline, drawings, needed, on_done=on_done)
    variants = vary(pipeline, drawings, rows, columns=GRID_COLUMNS, seed=seed)
    sections = grid_sections(pipeline, drawings, decoded, shown=shown, variants=variants)
    scores = {
        "understanding": understood,
        "generation": retrieved,
        "own": _own_features(drawings, variants, seed),
        "scenes": _scenes(drawings, decoded, scenes, seed),
        "held_out": apart.figures(),
        "provenance": provenance | _provenance(recipe, pipeline, samples),
    }
    scores["reasons"] = null_reasons(scores)
    asked = asked_sections(answered, shown, retrieved)
    subtitle = GRID_SUBTITLE.format(kinds=apart.kinds)
    grid = render_grid(sections, title=GRID_TITLE, subtitle=subtitle, asked=asked)
    return Evaluation(scores=scores, images=ReportImages(grid=grid, answered=answered))


def _ask(
    pipeline: Blip3oPipeline, samples: EvaluationSamples, seed: int
) -> tuple[tuple[AnsweredPicture, ...], dict[str, Any] | None]:
    """Every question with its reply, and their scores; `shuffled` is the accuracy with exchanged images.

    The scores are None where the held-out data have no questions.
    """
    if not samples.questions:
        return (), None
    images = [question.item.image for question in samples.questions]
    with progress_bar("evaluate: questions", len(images)) as on_done:
        records = ask(pipeline, samples.questions, images=images, on_done=on_done)
    closed = [question for question in samples.questions if len(question.choices) >= MIN_CHOICES]
    with progress_bar("evaluate: questions, other pictures", len(closed)) as on_done:
        control = ask(pipeline, closed, images=exchanged_images(closed, seed), on_done=on_done)
    answered = (AnsweredPicture(record=record, image=image) for record, image in zip(records, images, strict=True))
    shuffled = understanding.score(control, seed=seed)["accuracy"]
    return tuple(answered), understanding.score(records, seed=seed) | {"shuffled": shuffled}


def _retrieval(drawings: Drawings, seed: int) -> dict[str, Any]:
    generated, truth = (features.float().cpu().numpy() for features in (drawings.generated, drawings.truth))
    return retrieval.score(generated, truth, [item.source for item in drawings.items], seed=seed)


def _own_features(drawings: Drawings, variants: Variants, seed: int) -> dict[str, Any]:
    """Figures in the model's own features. The diversity is that of the grid's drawings; None for a single prompt."""
    generated, truth, several = (
        features.float().cpu().numpy() for features in (drawings.generated, drawings.truth, variants.features)
    )
    diversity = feature_space.diversity(several) if len(several) > 1 else None
    return feature_space.alignment(generated, truth, seed=seed) | {"diversity": diversity}


def _scenes(drawings: Drawings, decoded: DecodedImages, rows: list[int], seed: int) -> dict[str, Any] | None:
    """None where no held-out source holds scenes."""
    if not rows:
        return None
    return scene_accuracy.score(
        [drawings.items[row].record for row in rows],
        drawn=[decoded.drawn[row] for row in rows],
        decoded=[decoded.decoded[row] for row in rows],
        true=[drawings.items[row].image for row in rows],
        seed=seed,
    )


def _bundle_provenance(uri: str) -> dict[str, Any]:
    digest = hashlib.sha256(storage.read_bytes(storage.join(uri, SEAL))).hexdigest()
    return {"bundle": storage.normalize(uri), f"sha256 of {SEAL}": digest}


def _provenance(recipe: Recipe, pipeline: Blip3oPipeline, samples: EvaluationSamples) -> dict[str, Any]:
    sampler = pipeline.model.config.sampler
    return _asked(recipe, samples) | {
        "precision": pipeline.precision,
        "sampler": f"{sampler.num_inference_steps} steps, guidance {sampler.guidance_scale:g}",
        "comparable with published benchmarks": f"no ({NOT_COMPARABLE})",
    }


def _asked(recipe: Recipe, samples: EvaluationSamples) -> dict[str, Any]:
    """What decides which samples are drawn and asked about."""
    return {
        **{f"manifest of {name}": fingerprint for name, fingerprint in samples.fingerprints.items()},
        "evaluation's seed": recipe.evaluate.seed,
        "asked for": f"{recipe.evaluate.questions} questions, {recipe.evaluate.images} images",
    }


def _write(evaluation: Evaluation, uri: str) -> None:
    report = render_report(summary=evaluation.scores, metrics={}, images=evaluation.images)
    records = [json.dumps(asdict(item.record), ensure_ascii=False) for item in evaluation.images.answered]
    files = {
        "answers.jsonl": "\n".join([*records, ""]).encode(),
        "grid.png": _png(evaluation.images.grid),
        "report.html": report.encode(),
        EVALUATION: json.dumps(evaluation.scores, indent=1, ensure_ascii=False).encode(),
    }
    for name, data in files.items():
        storage.write_bytes(storage.join(uri, name), data)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
