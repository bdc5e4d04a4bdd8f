"""The floating-point operations of one sample by component, as the meter of a run counts them."""

from blip3o.budget.micro_batch import IMAGE_TOKEN, PAD, make_micro_batch
from blip3o.config.recipe import Recipe
from blip3o.model.flops import formulas
from blip3o.model.flops.formulas import Grad
from blip3o.train.objectives.base import build_objective

UNCHANGED = ("encoder", "prompt")  # parts without gradients: there is nothing to recompute
RECOMPUTED = 4 / 3  # one forward pass more, next to one forward and a backward pass of twice its operations


def sample_flops(recipe: Recipe, *, tokens: int | None = None) -> dict[str, float]:
    """FLOPs of a sample's training step by part, forward and backward, for rows of `tokens` tokens without padding."""
    objective = build_objective(recipe.objective, recipe, pad_id=PAD)
    batch = objective.prepare(make_micro_batch(recipe, tokens=tokens))
    counted = objective.flops(batch, image_token_id=IMAGE_TOKEN)
    return {name: flops / recipe.optim.micro_batch_size for name, flops in counted.items()}


def executed_flops(recipe: Recipe, useful: dict[str, float]) -> float:
    """FLOPs of a sample that are executed: the useful ones, and those of recomputation."""
    if not recipe.parallel.activation_checkpointing:
        return sum(useful.values())
    return sum(flops * (1.0 if name in UNCHANGED else RECOMPUTED) for name, flops in useful.items())


def encoder_flops(recipe: Recipe) -> int:
    """FLOPs of the frozen encoder for one image."""
    return formulas.encoder(recipe.model.encoder, images=1, grad=Grad.NONE)
