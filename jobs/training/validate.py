"""Validates a checkpoint while its stage goes on training: a task that Ray Train starts when a checkpoint is committed.

It reads the checkpoint from the store, as a later run would, and shares nothing with the workers but the machine: no
step waits for it, and it changes no number of the training. Results are below `<run>/validation`: figures as JSON, the
grid of drawings as PNG; both go to TensorBoard as well.
"""

import io
import json
import posixpath
import tempfile
import time
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from ray.train import Checkpoint

from blip3o import log, storage
from blip3o.config.recipe import Recipe
from blip3o.data.batches import build_micro_batches
from blip3o.data.inputs import StageInputs
from blip3o.device import select
from blip3o.evaluate.heldout.measure import draw_seed
from blip3o.evaluate.heldout.samples import choose
from blip3o.evaluate.heldout.sampling import HeldOutItem
from blip3o.evaluate.reports.grid import GridRow, GridSection, render_grid
from blip3o.inference import Pipeline
from blip3o.model.decoders.pixel import to_pixels
from blip3o.model.unified import UnifiedModel
from blip3o.runs.checkpoints import lists_uri, parse_name, shards_uri
from blip3o.runs.paths import tensorboard_folder, validation_uri
from blip3o.train.checkpoint.files import pull, read_lists
from blip3o.train.ema import FILES
from blip3o.train.metrics.trackers import TensorBoard
from blip3o.train.objectives import StageModule
from blip3o.train.stages import stage_of
from blip3o.train.validation.loss import held_out, num_micro_batches, validate
from blip3o.train.validation.model import MODEL_FILE, trained_weights, validation_model
from jobs.training.plan import FitPlan

GRID_TITLE = "What the model draws"


def validate_checkpoint(checkpoint: Checkpoint, *, plan: dict[str, Any]) -> dict[str, float]:
    """The figures of a checkpoint of a stage of the plan (a `FitPlan` as a dictionary), which are stored as well.

    Raises `Blip3oError` kinds; Ray Train logs what was raised and trains on.
    """
    log.configure()
    run, step = parse_name(posixpath.basename(checkpoint.path))
    fit = FitPlan(**plan)
    recipe = next(stage for stage in fit.pipeline().stages if stage.run.name == run)
    with tempfile.TemporaryDirectory(prefix="blip3o-validate-") as directory:
        _fetch(recipe, fit.name, step, Path(directory))
        trained = trained_weights(Path(directory))
    return validate_weights(recipe, step, trained)


def _fetch(recipe: Recipe, fit_name: str, step: int, directory: Path) -> None:
    """Copies the files that have the weights and their average; under ZeRO-3 all. Raises `DamagedCheckpointError`."""
    lists = read_lists(lists_uri(recipe, fit_name, step))
    whole = not any(file.path == MODEL_FILE for file in lists[0].files)
    for files in lists:
        wanted = [it for it in files.files if whole or it.path == MODEL_FILE or fnmatchcase(it.path, FILES)]
        pull(shards_uri(recipe, step), replace(files, files=tuple(wanted)), directory)


def validate_weights(recipe: Recipe, step: int, trained: dict[str, torch.Tensor]) -> dict[str, float]:
    """The same for trained weights by name. Raises as it does."""
    began = time.monotonic()
    torch.set_num_threads(recipe.parallel.threads)
    unseen = StageInputs(held_out(recipe))
    device = select(recipe.parallel.device)
    model = validation_model(recipe, trained, image_token_id=unseen.image_token_id, device=device)
    figures = _figures(recipe, unseen, model)
    run = (recipe.run.storage, recipe.run.name)
    board = TensorBoard(tensorboard_folder(*run), name="validation")
    grid = _grid(recipe, unseen, model, step) if recipe.evaluate.grid else None
    if grid is not None:
        png = _png(grid)
        storage.write_bytes(validation_uri(*run, step, suffix="png"), png)
        board.write_image(step, "validation/drawings", png, size=grid.size)
    board.write([{"step": step, **figures}])
    whole = {"step": step, "seconds": time.monotonic() - began, "drawings": grid is not None, **figures}
    storage.write_bytes(validation_uri(*run, step), json.dumps(whole, indent=1).encode())
    return figures


def _figures(recipe: Recipe, unseen: StageInputs, model: UnifiedModel) -> dict[str, float]:
    make = build_micro_batches(unseen, stage_of(recipe).task)
    batches = map(make, range(num_micro_batches(recipe)))
    module = StageModule(unseen.recipe, model, pad_id=unseen.pad_id)
    return validate(unseen.recipe, module, batches, pad_id=unseen.pad_id)


def _grid(recipe: Recipe, unseen: StageInputs, model: UnifiedModel, step: int) -> Image.Image | None:
    """The first held-out prompts, drawn with fixed seeds; None where the stage draws nothing, or has no decoder."""
    if not model.generates or not (model.has("decoder") or model.has("coarse")):
        return None
    evaluate = recipe.evaluate
    chosen = choose(recipe.data, evaluate.model_copy(update={"images": evaluate.grid, "questions": 1}))
    pipeline = Pipeline(
        model=model,
        tokenizer=unseen.tokenizer,
        template=unseen.template,
        max_length=recipe.data.max_length,
        device=next(model.parameters()).device,
        width=evaluate.grid,
    )
    title = f"{recipe.run.name} after {step} steps"
    section = GridSection(title=", ".join(chosen.fingerprints), rows=_rows(recipe, pipeline, chosen.items))
    return render_grid([section], title=GRID_TITLE, subtitle=title)


def _rows(recipe: Recipe, pipeline: Pipeline, items: tuple[HeldOutItem, ...]) -> tuple[GridRow, ...]:
    captions, seed = [item.caption for item in items], recipe.evaluate.seed
    columns = []
    for number in range(recipe.evaluate.grid_seeds):
        seeds = [draw_seed(seed, item.uid, number) for item in items]
        columns.append(_pictures(pipeline, pipeline.generate_features(captions, seeds=seeds), seeds))
    first = [draw_seed(seed, item.uid, 0) for item in items]
    limit = _pictures(pipeline, pipeline.encode([item.image for item in items]), first)
    drawn = zip(*columns, strict=True)
    rows = zip(items, limit, drawn, strict=True)
    return tuple(GridRow(caption=it.caption, truth=it.image, decoded=best, drawn=made) for it, best, made in rows)


@torch.inference_mode()
def _pictures(pipeline: Pipeline, features: torch.Tensor, seeds: list[int]) -> list[Image.Image]:
    """Pictures by the decoder, or by the coarse head alone where the decoder has not been trained yet."""
    if pipeline.model.has("decoder"):
        return pipeline.decode(features, seeds=seeds)
    return [Image.fromarray(pixels) for pixels in to_pixels(pipeline.model.coarse(features)).cpu().numpy()]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
