"""Text and generation at once, on samples that are asked about, drawn, or both."""

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
    """The terms of two objectives, text and one that generates, with gradients of both through the backbone."""

    def __init__(self, recipe: Recipe, *, pad_id: int) -> None:
        super().__init__(recipe, pad_id=pad_id)
        text, generating = (
            build_objective(OBJECTIVES[name], recipe, pad_id=pad_id) for name in recipe.objective.combines
        )
        self._text, self._generating = text, cast("Generating", generating)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Of each term, over the samples that are for its task."""
        return self._text.counts(batch) | self._generating.counts_of(int(batch["draws"].sum()))

    def loss(self, model: UnifiedModel, batch: Batch) -> dict[str, Tensor]:
        """Text of the samples that are asked about, generation of those that are drawn."""
        asked, drawn = split_tasks(batch)
        text, generated = self._text.loss(model, asked), self._generating.loss(model, drawn)
        return text | {name: value * batch["draws"].any() for name, value in generated.items()}

    def held_out(self, model: UnifiedModel, batch: Batch) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Of both; a batch may have nothing to draw."""
        asked, drawn = split_tasks(batch)
        sums, counts = self._text.held_out(model, asked)
        if not batch["draws"].any():
            return sums, counts
        more, of_more = self._generating.held_out(model, drawn)
        return sums | more, counts | of_more

    def flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """Both tasks; prompt and queries go in one pass, with gradients through both."""
        asked, drawn = split_tasks(batch)
        model, (rows, tokens) = self.recipe.model, drawn["input_ids"].shape
        whole = tokens + model.num_queries
        parts = self._text.flops(asked, image_token_id=image_token_id)
        parts |= self._generating.flops(drawn, image_token_id=image_token_id)
        queries = formulas.language_model(model.backbone, rows=rows, tokens=whole, context=whole, grad=Grad.BOTH)
        return {name: flops for name, flops in parts.items() if name != "prompt"} | {"queries": queries}


def split_tasks(batch: Batch) -> tuple[Batch, Batch]:
    """A batch of both tasks as those of each: the samples that are asked about, and those to draw.

    Neither is empty: every part of the model runs on every rank, on one sample if there is none for it, whose loss is
    zero, since other ranks wait in their collectives for its gradients, and under ZeRO-3 for its share of the weights.
    """
    requests = {name: rows for name, rows in batch.items() if name not in ("labels", "branches", "prompt_pixels")}
    requests["input_ids"] = requests.pop("draw_ids")
    return _chosen(batch, (batch["labels"] != IGNORE).any(1)), _chosen(requests, batch["draws"])


def _chosen(batch: Batch, mask_B: Tensor) -> Batch:
    """The rows that the mask marks; only the first if it marks none."""
    rows = mask_B.nonzero().flatten() if mask_B.any() else torch.zeros(1, dtype=torch.long, device=mask_B.device)
    return {name: tensor[rows] for name, tensor in batch.items()}
