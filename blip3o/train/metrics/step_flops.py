"""The floating-point operations of a recipe's step, known before it is trained."""

import torch

from blip3o.config.recipe import Recipe
from blip3o.data.batches import build_micro_batches
from blip3o.data.inputs import StageInputs
from blip3o.runs.rows import FLOPS
from blip3o.train.loop import to_batch
from blip3o.train.metrics.meter import FlopsMeter
from blip3o.train.stages import stage_of


def step_flops(recipe: Recipe) -> int:
    """Floating-point operations of one optimizer step, forward and backward, by the shape of the first micro-batch."""
    inputs = StageInputs(recipe)
    arrays = build_micro_batches(inputs, stage_of(recipe).task)(0)
    batch = to_batch(arrays, pad_id=inputs.pad_id, device=torch.device("cpu"))
    work = FlopsMeter(recipe, image_token_id=inputs.image_token_id, pad_id=inputs.pad_id)(batch)
    return sum(count for name, count in work.items() if name.startswith(FLOPS)) * recipe.optim.micro_batches
