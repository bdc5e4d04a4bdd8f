"""The floating-point operations of one sample by component, as the meter of a run counts them."""

from blip3o.budget.micro_batch import IMAGE_TOKEN, PAD, make_micro_batch
from blip3o.config.recipe import Recipe
from blip3o.model.flops import formulas
from blip3o.model.flops.formulas import Grad
from blip3o.train.objectives.base import build_objective

LAYERS = ("backbone", "queries", "dit")  # parts of which activation checkpointing recomputes the layers
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
    return sum(flops * (RECOMPUTED if name in LAYERS else 1.0) for name, flops in useful.items())


def forward_flops(useful: dict[str, float]) -> float:
    """The useful FLOPs of a sample's forward pass.

    That is a third of what trains, half of what passes gradients on through frozen weights, and all of what has none.
    """

    def share(name: str) -> float:
        if name in ("prompt", "autoencoder") or (name == "encoder" and "contrastive" not in useful):
            return 1.0
        return 1 / 2 if name == "queries" and "prompt" in useful else 1 / 3  # joint training has no part `prompt`

    return sum(flops * share(name) for name, flops in useful.items())


def encoder_flops(recipe: Recipe) -> int:
    """FLOPs of the frozen encoder for one image."""
    return formulas.encoder(recipe.model.encoder, images=1, grad=Grad.NONE)
