"""The work of a micro-batch: floating-point operations of each part of its step, and tokens.

The objective counts operations, by the formulas of `blip3o.model.flops.formulas`. Parts without a formula
(convolutional decoders, autoencoders) are counted once, on meta tensors. The work of a micro-batch depends only on its
shape and its padding, so a step has the same counts in any run. The loop sums them over ranks together with the loss.
"""

from blip3o.config.recipe import Recipe
from blip3o.runs.rows import FLOPS, TOKENS, USEFUL_FLOPS
from blip3o.train.objectives.base import Batch, build_objective


class FlopsMeter:
    """Counts the work of a stage's micro-batches."""

    def __init__(self, recipe: Recipe, *, image_token_id: int, pad_id: int) -> None:
        self._objective = build_objective(recipe.objective, recipe, pad_id=pad_id)
        self._image_token_id, self._pad_id = image_token_id, pad_id

    def __call__(self, batch: Batch) -> dict[str, int]:
        """`flops/PART` for each part of the step, forward and backward, and `tokens` if the stage reads text.

        `useful_flops/PART` are those of `flops/PART` that are not spent on padding, for parts that may have padding.
        """
        computed = self._objective.flops(batch, image_token_id=self._image_token_id)
        useful = self._objective.useful_flops(batch, image_token_id=self._image_token_id)
        parts = {FLOPS + name: flops for name, flops in computed.items()}
        parts |= {USEFUL_FLOPS + name: flops for name, flops in useful.items()}
        tokens = int((batch["input_ids"] != self._pad_id).sum()) if "input_ids" in batch else 0
        return parts | {TOKENS: tokens} if tokens else parts
