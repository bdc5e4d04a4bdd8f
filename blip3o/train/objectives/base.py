"""What every objective answers: how much it judges, its loss, and what a step of it computes.

A term of a loss is a sum over what it judges and, known before any arithmetic, the count of it. The loss of an
optimizer step is Σ weight · (global sum / global count): so neither accumulation nor the number of workers changes it.
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
    """One objective of a recipe. It holds no weights: the model is an argument.

    Its row in `blip3o.config.objectives.OBJECTIVES` says what it builds and trains, and names its terms; the keys of
    `counts`, `loss` and `held_out` are those names.
    """

    def __init__(self, recipe: Recipe, *, pad_id: int) -> None:
        self.recipe, self.pad_id = recipe, pad_id

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, int]:
        """How much each term of this micro-batch will judge: pairs, pixels, tokens or feature elements."""

    @abstractmethod
    def loss(self, model: UnifiedModel, batch: Batch) -> dict[str, Tensor]:
        """One micro-batch → the sum of each term, scalars, fp32."""

    @abstractmethod
    def flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """Floating-point operations of a micro-batch's step, forward and backward, by part.

        What the stage's row trains needs a gradient: `stage.trainable` and `stage.lora` are not counted. The parts are
        those of a recipe, whatever a batch holds: ranks sum them in one reduction, by position.
        """

    def held_out(self, model: UnifiedModel, batch: Batch) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Sums and counts of each term on held-out samples: the loss, if an objective has no better figure.

        A sum may be a vector, of bins of the noise level from low to high; its count is then of each bin.
        """
        return self.loss(model, batch), self.counts(batch)

    def mask(self, batch: Batch) -> Tensor:
        """Which of the batch's tokens are real, int64 [B, L]."""
        return (batch["input_ids"] != self.pad_id).long()

    def frozen_encoder(self, batch: Batch) -> dict[str, int]:
        """Operations of the frozen encoder on a micro-batch, as part `encoder`; no part where features came with it."""
        if "features" in batch:
            return {}
        rows = batch["draw_key"].shape[0]
        return {"encoder": formulas.encoder(self.recipe.model.encoder, images=rows, grad=Grad.NONE)}


def build_objective(spec: ObjectiveSpec, recipe: Recipe, *, pad_id: int) -> Objective:
    """The objective of a row of the table, for a recipe whose stage trains it, alone or with others."""
    module, _, name = spec.implementation.partition(":")
    return getattr(import_module(module), name)(recipe, pad_id=pad_id)
