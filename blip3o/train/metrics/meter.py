"""How much a micro-batch asks of the machine: operations of each part of its step, and tokens that are read.

Operations are the objective's to count, by the formulas of `blip3o.model.flops.formulas`; what has none (convolutional
decoders, autoencoders) is counted once, on tensors without data. A micro-batch's work depends on its own shape alone,
so the same step has the same numbers in any run, and the loop sums them over ranks with the counts of the loss.
"""

from blip3o.config.recipe import Recipe
from blip3o.runs.rows import FLOPS, TOKENS
from blip3o.train.objectives.base import Batch, build_objective


class FlopsMeter:
    """The work of micro-batches of a recipe's stage."""

    def __init__(self, recipe: Recipe, *, image_token_id: int, pad_id: int) -> None:
        self._objective = build_objective(recipe.objective, recipe, pad_id=pad_id)
        self._image_token_id, self._pad_id = image_token_id, pad_id

    def __call__(self, batch: Batch) -> dict[str, int]:
        """`flops/PART` for each part of the step, forward and backward, and `tokens`, where the stage reads text."""
        work = self._objective.flops(batch, image_token_id=self._image_token_id)
        parts = {FLOPS + name: flops for name, flops in work.items()}
        tokens = int((batch["input_ids"] != self._pad_id).sum()) if "input_ids" in batch else 0
        return parts | {TOKENS: tokens} if tokens else parts
