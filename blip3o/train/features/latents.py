"""Measures the channel statistics of generation targets: the implementation of `blip3o latents`.

For recipes with `model.normalize_latents`. The result is a finished run. The generating stage names it in
`stage.start_from`, and the export in `--from`, together with the encoder's run.
"""

import hashlib
import json
import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from blip3o.config.recipe import Recipe
from blip3o.data.batches import build_micro_batches
from blip3o.data.inputs import StageInputs
from blip3o.device import select
from blip3o.errors import ConfigError
from blip3o.model.unified import UnifiedModel
from blip3o.runs.paths import final_uri
from blip3o.runs.results import require_finished, write_final
from blip3o.train.features.statistics import channel_statistics
from blip3o.train.initial_weights import Placement, load_start_weights, require_frozen_weights
from blip3o.train.stages import stage_of

logger = logging.getLogger(__name__)

TARGETS = {"encoder", "decoder"}  # the parts that make targets


def measure_latents(recipe: Recipe, *, name: str, images: int) -> tuple[Tensor, Tensor]:
    """Measures over the first `images` samples of the recipe's order, rounded up to micro-batches; writes run `name`.

    Features are computed in the recipe's precision, as the trainer computes them; their sums are fp64. Returns mean and
    standard deviation, [F]. Raises `ConfigError` if the recipe does not normalise latents or is for another stage, and
    `CheckpointError` if the encoder of the targets has no weights.
    """
    if not recipe.model.normalize_latents or recipe.objective.generation is None:
        raise ConfigError("statistics are for a generating stage that uses them: set model.normalize_latents=true")
    recipe = recipe.with_online_features()
    inputs = StageInputs(recipe)
    torch.set_num_threads(recipe.parallel.threads)
    dtype = torch.bfloat16 if recipe.parallel.precision == "bf16" else torch.float32
    model = _target_model(inputs, name).to(select(recipe.parallel.device), dtype)
    count = -(-images // recipe.optim.micro_batch_size)
    mean, std = channel_statistics(_features(inputs, model, count))
    starts = [run for run in recipe.stage.start_from if run != name]
    tensors = {"latent_scale.mean": mean, "latent_scale.std": std}
    tree = recipe.model_dump(mode="json")
    write_final(
        final_uri(recipe.run.storage, name),
        tensors,
        {
            "run": name,
            "stage": "latents",
            "parts": sorted(TARGETS),
            "starts": {run: require_finished(recipe.run.storage, run)["sha256"] for run in starts},
            "identity": hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest(),
            "recipe": tree,
            "summary": {"images": count * recipe.optim.micro_batch_size},
        },
    )
    logger.info("%s: means %.3g … %.3g, deviations %.3g … %.3g", name, mean.min(), mean.max(), std.min(), std.max())
    return mean, std


def _target_model(inputs: StageInputs, name: str) -> UnifiedModel:
    """The model parts that compute targets, with weights from the runs in `stage.start_from`, except run `name`."""
    recipe, image_token = inputs.recipe, inputs.image_token_id
    parts = TARGETS & set(stage_of(recipe).parts)
    model = UnifiedModel(recipe.model, image_token_id=image_token, parts=parts, max_length=recipe.data.max_length)
    require_frozen_weights(model, load_start_weights(model, recipe, to=Placement(), without=name), [])
    return model.eval()


@torch.inference_mode()
def _features(inputs: StageInputs, model: UnifiedModel, micro_batches: int) -> Iterator[Tensor]:
    recipe = inputs.recipe
    builder = build_micro_batches(inputs, stage_of(recipe).task)
    device = next(model.parameters()).device
    column = recipe.model.generation.pixels
    for number in range(micro_batches):
        yield model.features(torch.from_numpy(builder(number)[column]).to(device))
