"""Text and generation at once, on samples for understanding, for generation, or for both."""

from typing import cast

import torch
from torch import Tensor

from blip3o.config.objectives import OBJECTIVES
from blip3o.config.recipe import Recipe
from blip3o.data.text.templates import IGNORE
from blip3o.model.flops import formulas
from blip3o.model.flops.formulas import Grad
from blip3o.model.unified import UnifiedModel
from blip3o.train.objectives.base import Batch, Objective, build_objective
from blip3o.train.objectives.generating import Generating


class Joint(Objective):
    """The terms of two objectives, text and a generating one, with gradients of both through the backbone."""

    def __init__(self, recipe: Recipe, *, pad_id: int) -> None:
        super().__init__(recipe, pad_id=pad_id)
        text, generating = (
            build_objective(OBJECTIVES[name], recipe, pad_id=pad_id) for name in recipe.objective.combines
        )
        self._text, self._generating = text, cast("Generating", generating)

    def counts(self, batch: Batch) -> dict[str, int]:
        """The counts of each term, over the samples of its task."""
        return self._text.counts(batch) | self._generating.counts_for(int(batch["draws"].sum()))

    def loss(self, model: UnifiedModel, batch: Batch) -> dict[str, Tensor]:
        """The text loss on samples for understanding, the generating loss on samples for generation."""
        understood, generated = split_tasks(batch)
        text, image = self._text.loss(model, understood), self._generating.loss(model, generated)
        # A batch without samples for generation still runs one: `any` turns its loss into zero.
        return text | {name: value * batch["draws"].any() for name, value in image.items()}

    def held_out(self, model: UnifiedModel, batch: Batch) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The sums and counts of both objectives; a batch may have no samples for generation."""
        understood, generated = split_tasks(batch)
        sums, counts = self._text.held_out(model, understood)
        if not batch["draws"].any():
            return sums, counts
        image_sums, image_counts = self._generating.held_out(model, generated)
        return sums | image_sums, counts | image_counts

    def flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """Operations of both tasks. Prompt and queries share one pass, with gradients through both."""
        understood, generated = split_tasks(batch)
        model, (rows, tokens) = self.recipe.model, generated["input_ids"].shape
        length = tokens + model.num_queries
        parts = self._text.flops(understood, image_token_id=image_token_id)
        parts |= self._generating.flops(generated, image_token_id=image_token_id)
        queries = formulas.language_model(model.backbone, rows=rows, tokens=length, context=length, grad=Grad.BOTH)
        return {name: flops for name, flops in parts.items() if name != "prompt"} | {"queries": queries}


def split_tasks(batch: Batch) -> tuple[Batch, Batch]:
    """Splits a batch into the samples for understanding and those for generation.

    Neither part is empty: if a task has no samples, it gets one whose loss is zero. Every part of the model must run on
    every rank, because other ranks wait in collectives for its gradients, and under ZeRO-3 for its share of the
    weights.
    """
    requests = {name: rows for name, rows in batch.items() if name not in ("labels", "branches", "prompt_pixels")}
    requests["input_ids"] = requests.pop("draw_ids")
    return _select_rows(batch, (batch["labels"] != IGNORE).any(1)), _select_rows(requests, batch["draws"])


def _select_rows(batch: Batch, mask_B: Tensor) -> Batch:
    """The rows selected by the mask; the first row if it selects none."""
    rows = mask_B.nonzero().flatten() if mask_B.any() else torch.zeros(1, dtype=torch.long, device=mask_B.device)
    return {name: tensor[rows] for name, tensor in batch.items()}
