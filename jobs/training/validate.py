"""Validates a checkpoint while training continues: a task that Ray Train starts when a checkpoint is committed.

It reads the checkpoint from the store, as a resumed run would, and shares only the machine with the workers: no step
waits for it, and training's numbers do not depend on it. Results are written below `<run>/validation`: metrics as JSON,
the grid of generated images as PNG. Both go to TensorBoard too.
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
from blip3o.evaluate.heldout.outputs import draw_seed
from blip3o.evaluate.heldout.reader import choose
from blip3o.evaluate.heldout.selection import HeldOutSample
from blip3o.evaluate.reports.grid import GridRow, GridSection, render_grid
from blip3o.inference.pipeline import Blip3oPipeline
from blip3o.model.decoders.pixel import to_pixels
from blip3o.model.unified import UnifiedModel
from blip3o.runs.checkpoints import lists_uri, parse_checkpoint_name, shards_uri
from blip3o.runs.paths import tensorboard_folder, validation_uri
from blip3o.train.checkpoint.files import download_files, read_rank_lists
from blip3o.train.checkpoint.staging import own_folder
from blip3o.train.ema import FILES
from blip3o.train.metrics.trackers import TensorBoard
from blip3o.train.objectives import StageModule
from blip3o.train.stages import stage_of
from blip3o.train.validation.loss import held_out, num_micro_batches, validate
from blip3o.train.validation.model import MODEL_FILE, trained_weights, validation_model
from jobs.training.plan import FitPlan

GRID_TITLE = "What the model draws"


def validate_checkpoint(checkpoint: Checkpoint, *, plan: dict[str, Any]) -> dict[str, float]:
    """Computes and stores the metrics of a checkpoint. `plan` is a `FitPlan` as a dictionary.

    Raises subclasses of `Blip3oError`. Ray Train logs the error, and training continues.
    """
    log.configure()
    run, step = parse_checkpoint_name(posixpath.basename(checkpoint.path))
    fit = FitPlan(**plan)
    recipe = next(stage for stage in fit.pipeline().stages if stage.run.name == run)
    with tempfile.TemporaryDirectory(dir=own_folder()) as directory:
        _download(recipe, fit.name, step, Path(directory))
        trained = trained_weights(Path(directory))
    return validate_weights(recipe, step, trained)


def _download(recipe: Recipe, fit_name: str, step: int, directory: Path) -> None:
    """Downloads the files with the weights and their average; under ZeRO-3 all files.

    Raises `DamagedCheckpointError`.
    """
    lists = read_rank_lists(lists_uri(recipe, fit_name, step))
    # Under ZeRO-3 there is no model file: the weights are put together from the optimizer's state of all ranks.
    all_files = not any(file.path == MODEL_FILE for file in lists[0].files)
    for files in lists:
        wanted = [it for it in files.files if all_files or it.path == MODEL_FILE or fnmatchcase(it.path, FILES)]
        download_files(shards_uri(recipe, step), replace(files, files=tuple(wanted)), directory)


def validate_weights(recipe: Recipe, step: int, trained: dict[str, torch.Tensor]) -> dict[str, float]:
    """Computes and stores the metrics of trained weights, given by parameter name. Raises as `validate_checkpoint`."""
    began = time.monotonic()
    torch.set_num_threads(recipe.parallel.threads)
    inputs = StageInputs(held_out(recipe))
    device = select(recipe.parallel.device)
    model = validation_model(recipe, trained, image_token_id=inputs.image_token_id, device=device)
    metrics = _metrics(recipe, inputs, model)
    run = (recipe.run.storage, recipe.run.name)
    board = TensorBoard(tensorboard_folder(*run), name="validation")
    grid = _grid(recipe, inputs, model, step) if recipe.evaluate.grid else None
    if grid is not None:
        png = _png(grid)
        storage.write_bytes(validation_uri(*run, step, suffix="png"), png)
        board.write_image(step, "validation/drawings", png, size=grid.size)
    board.write([{"step": step, **metrics}])
    result = {"step": step, "seconds": time.monotonic() - began, "drawings": grid is not None, **metrics}
    # Written last: this file marks the validation as complete.
    storage.write_bytes(validation_uri(*run, step), json.dumps(result, indent=1).encode())
    return metrics


def _metrics(recipe: Recipe, inputs: StageInputs, model: UnifiedModel) -> dict[str, float]:
    build = build_micro_batches(inputs, stage_of(recipe).task)
    batches = map(build, range(num_micro_batches(recipe)))
    module = StageModule(inputs.recipe, model, pad_id=inputs.pad_id)
    return validate(inputs.recipe, module, batches, pad_id=inputs.pad_id)


def _grid(recipe: Recipe, inputs: StageInputs, model: UnifiedModel, step: int) -> Image.Image | None:
    """Images of the first held-out prompts, with fixed seeds; None if the stage does not generate or has no decoder."""
    if not model.generates or not (model.has("decoder") or model.has("coarse")):
        return None
    evaluate = recipe.evaluate
    chosen = choose(recipe.data, evaluate.model_copy(update={"images": evaluate.grid, "questions": 1}))
    pipeline = Blip3oPipeline(
        model=model,
        tokenizer=inputs.tokenizer,
        template=inputs.template,
        max_length=recipe.data.max_length,
        device=next(model.parameters()).device,
        batch_size=evaluate.grid,
    )
    title = f"{recipe.run.name} after {step} steps"
    section = GridSection(title=", ".join(chosen.fingerprints), rows=_rows(recipe, pipeline, chosen.items))
    return render_grid([section], title=GRID_TITLE, subtitle=title)


def _rows(recipe: Recipe, pipeline: Blip3oPipeline, items: tuple[HeldOutSample, ...]) -> tuple[GridRow, ...]:
    captions, seed = [item.caption for item in items], recipe.evaluate.seed
    columns = []
    for number in range(recipe.evaluate.grid_seeds):
        seeds = [draw_seed(seed, item.uid, number) for item in items]
        columns.append(_decode(pipeline, pipeline.generate_features(captions, seeds=seeds), seeds))
    first = [draw_seed(seed, item.uid, 0) for item in items]
    # The decoder's own limit: images decoded from the features of the true image.
    limit = _decode(pipeline, pipeline.encode([item.image for item in items]), first)
    drawn = zip(*columns, strict=True)
    rows = zip(items, limit, drawn, strict=True)
    return tuple(GridRow(caption=it.caption, truth=it.image, decoded=best, drawn=made) for it, best, made in rows)


@torch.inference_mode()
def _decode(pipeline: Blip3oPipeline, features: torch.Tensor, seeds: list[int]) -> list[Image.Image]:
    """Images from the decoder, or from the coarse head if the decoder has not been trained yet."""
    if pipeline.model.has("decoder"):
        return pipeline.decode(features, seeds=seeds)
    return [Image.fromarray(pixels) for pixels in to_pixels(pipeline.model.coarse(features)).cpu().numpy()]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
