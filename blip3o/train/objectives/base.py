"""The interface of objectives: the counts of their loss terms, the loss, and the floating-point operations.

Each term of a loss is a sum over elements and their count, which is known before any arithmetic. The loss of an
optimizer step is Σ weight · (global sum / global count): neither accumulation nor the number of workers changes it.
"""

from abc import ABC, abstractmethod
from importlib import import_module

from torch import Tensor

from blip3o.config.objectives import ObjectiveSpec
from blip3o.config.recipe import Recipe
from blip3o.model.flops import formulas
from blip3o.model.flops.formulas import Grad
from blip3o.model.unified import UnifiedModel

Batch = dict[str, Tensor]


class Objective(ABC):
    """An objective of a recipe. It holds no weights: the model is an argument.

    Its row in `blip3o.config.objectives.OBJECTIVES` defines the parts that are built, the parameters that are trained,
    and the names of its terms, which are the keys of `counts`, `loss` and `held_out`.
    """

    def __init__(self, recipe: Recipe, *, pad_id: int) -> None:
        self.recipe, self.pad_id = recipe, pad_id

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, int]:
        """The number of elements in each term of this micro-batch: pairs, pixels, tokens or feature elements."""

    @abstractmethod
    def loss(self, model: UnifiedModel, batch: Batch) -> dict[str, Tensor]:
        """One micro-batch → the sum of each term, scalars, fp32."""

    @abstractmethod
    def flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """Floating-point operations of a micro-batch's step, forward and backward, by part.

        All parameters that the objective's row trains count as trained: `stage.trainable` and `stage.lora` are ignored.
        The parts depend on the recipe only, not on the batch, because ranks sum them in one reduction, by position.
        """

    def held_out(self, model: UnifiedModel, batch: Batch) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Sums and counts of each term on held-out samples: those of the loss, unless an objective overrides this.

        A sum may be a vector with one element per bin of the noise level, low to high; the count is then that of a bin.
        """
        return self.loss(model, batch), self.counts(batch)

    def mask(self, batch: Batch) -> Tensor:
        """Which of the batch's tokens are real, int64 [B, L]."""
        return (batch["input_ids"] != self.pad_id).long()

    def frozen_encoder(self, batch: Batch) -> dict[str, int]:
        """Operations of the frozen encoder on a micro-batch, as part `encoder`; empty if the batch has features."""
        if "features" in batch:
            return {}
        rows = batch["draw_key"].shape[0]
        return {"encoder": formulas.encoder(self.recipe.model.encoder, images=rows, grad=Grad.NONE)}


def build_objective(spec: ObjectiveSpec, recipe: Recipe, *, pad_id: int) -> Objective:
    """Builds the objective of a row of the table for a recipe that trains it, by itself or as part of another one."""
    module, _, name = spec.implementation.partition(":")
    return getattr(import_module(module), name)(recipe, pad_id=pad_id)
