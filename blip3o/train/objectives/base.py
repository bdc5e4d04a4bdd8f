"""The interface of objectives: the counts of their loss terms, the loss, and the floating-point operations.

Each term of a loss is a sum over elements and their count, which is known before any arithmetic. The loss of an
optimizer step is Σ weight · (global sum / global count): neither accumulation nor the number of workers changes it.
"""

from abc import ABC, abstractmethod
from importlib import import_module

import torch
from torch import Tensor

from blip3o.config.objectives import ObjectiveSpec
from blip3o.config.recipe import Recipe
from blip3o.model.flops import formulas
from blip3o.model.flops.formulas import Grad
from blip3o.model.unified import UnifiedModel
from blip3o.train.objectives.draws import Draw, with_draws

Batch = dict[str, Tensor]

# The columns that stay on the CPU: their values decide shapes and row numbers, and reading them on a GPU would wait for
# all that was launched before.
HOST_COLUMNS = frozenset({"draw_key", "draws", "asked", "lengths", "draw_lengths"})
# The number of real tokens of each row, by the column of token ids.
_LENGTHS = {"input_ids": "lengths", "draw_ids": "draw_lengths"}


class Objective(ABC):
    """An objective of a recipe. It holds no weights: the model is an argument.

    Its row in `blip3o.config.objectives.OBJECTIVES` defines the parts that are built, the parameters that are trained,
    and the names of its terms, which are the keys of `counts`, `loss` and `held_out`.
    """

    def __init__(self, recipe: Recipe, *, pad_id: int) -> None:
        self.recipe, self.pad_id = recipe, pad_id

    @property
    def draws(self) -> tuple[Draw, ...]:
        """What `loss` draws for each sample; nothing, unless an objective overrides this."""
        return ()

    @property
    def held_out_draws(self) -> tuple[Draw, ...]:
        """What `held_out` draws for each sample: the draws of the loss, unless an objective overrides this."""
        return self.draws

    def prepare(self, batch: Batch, *, held_out: bool = False) -> Batch:
        """A micro-batch on the CPU, with all that the loss (or `held_out`) needs and that no weight decides.

        That is the draws (`with_draws`), and the number of real tokens in each row, `lengths` of `input_ids` and
        `draw_lengths` of `draw_ids`, int64 [B]. A pure function of the batch and the recipe; columns that the batch has
        already are kept.
        """
        made = with_draws(batch, self.held_out_draws if held_out else self.draws)
        for ids, lengths in _LENGTHS.items():
            if ids in batch and lengths not in batch:
                made[lengths] = (batch[ids] != self.pad_id).sum(1).cpu()
        return made

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, int]:
        """The number of elements in each term of this micro-batch: pairs, pixels, tokens or feature elements."""

    @abstractmethod
    def loss(self, model: UnifiedModel, batch: Batch) -> dict[str, Tensor]:
        """One micro-batch that was prepared (`prepare`) → the sum of each term, scalars, fp32."""

    @abstractmethod
    def flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """Floating-point operations of a micro-batch's step, forward and backward, by part, those on padding included.

        All parameters that the objective's row trains count as trained: `stage.trainable` and `stage.lora` are ignored.
        The parts depend on the recipe only, not on the batch, because ranks sum them in one reduction, by position.
        """

    def useful_flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """The operations of `flops` that real samples and tokens need, for each part that may compute on padding.

        Parts that are left out never do. The same parts for every batch, as in `flops`.
        """
        return {}

    def held_out(self, model: UnifiedModel, batch: Batch) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Sums and counts of each term on held-out samples: those of the loss, unless an objective overrides this.

        A sum may be a vector with one element per bin of the noise level, low to high; the count is then that of a bin.
        """
        return self.loss(model, batch), self.counts(batch)

    def mask(self, batch: Batch) -> Tensor:
        """Which of the batch's tokens are real, int64 [B, L]."""
        return (batch["input_ids"] != self.pad_id).long()

    def lengths(self, batch: Batch) -> list[int]:
        """The number of real tokens in each row of the batch."""
        return (batch["lengths"] if "lengths" in batch else self.mask(batch).sum(1)).tolist()

    def frozen_encoder(self, batch: Batch) -> dict[str, int]:
        """Operations of the frozen encoder on a micro-batch, as part `encoder`; empty if the batch has features."""
        if "features" in batch:
            return {}
        rows = batch["draw_key"].shape[0]
        return {"encoder": formulas.encoder(self.recipe.model.encoder, images=rows, grad=Grad.NONE)}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with all columns on the device, except `HOST_COLUMNS`. From pinned memory, nothing waits for a copy."""
    return {
        # To a GPU only: a copy from it that nobody waits for would be read too early.
        name: tensor.cpu() if name in HOST_COLUMNS else tensor.to(device, non_blocking=device.type != "cpu")
        for name, tensor in batch.items()
    }


def padded_lengths(batch: Batch) -> list[int]:
    """The number of tokens in each row of the batch, those of padding included."""
    rows, width = batch["input_ids"].shape
    return [width] * rows


def build_objective(spec: ObjectiveSpec, recipe: Recipe, *, pad_id: int) -> Objective:
    """Builds the objective of a row of the table for a recipe that trains it, by itself or as part of another one."""
    module, _, name = spec.implementation.partition(":")
    return getattr(import_module(module), name)(recipe, pad_id=pad_id)
