"""Text and generation at once, on samples for understanding, for generation, or for both."""

from typing import cast

import torch
from torch import Tensor

from blip3o.config.objectives import OBJECTIVES
from blip3o.config.recipe import Recipe
from blip3o.data.text.templates import IGNORE
from blip3o.device import send
from blip3o.model.flops import formulas
from blip3o.model.unified import UnifiedModel
from blip3o.train.objectives.base import Batch, Objective, build_objective, padded_lengths
from blip3o.train.objectives.draws import Draw
from blip3o.train.objectives.generating import Generating

_UNDERSTANDING = ("labels", "branches", "prompt_pixels", "lengths")


class Joint(Objective):
    """The terms of two objectives, text and a generating one, with gradients of both through the backbone."""

    def __init__(self, recipe: Recipe, *, pad_id: int) -> None:
        super().__init__(recipe, pad_id=pad_id)
        text, generating = (
            build_objective(OBJECTIVES[name], recipe, pad_id=pad_id) for name in recipe.objective.combines
        )
        self._text, self._generating = text, cast("Generating", generating)

    @property
    def draws(self) -> tuple[Draw, ...]:
        """Those of generation."""
        return self._generating.draws

    @property
    def held_out_draws(self) -> tuple[Draw, ...]:
        """Those of generation."""
        return self._generating.held_out_draws

    def prepare(self, batch: Batch, *, held_out: bool = False) -> Batch:
        """Also marks the rows for understanding: `asked`, bool [B]."""
        made = super().prepare(batch, held_out=held_out)
        return {**made, "asked": _asked(batch).cpu()}

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
        understood, generated = split_tasks(_without_pixels(batch))
        parts = self._text.flops(understood, image_token_id=image_token_id)
        parts |= self._generating.flops(generated, image_token_id=image_token_id)
        return self._in_one_pass(parts, padded_lengths(generated))

    def useful_flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """All parts: texts are padded, and a task without samples runs one for nothing."""
        batch = _without_pixels(batch)
        understood, generated = _select_rows(batch, _asked(batch)), _select_rows(_requests(batch), batch["draws"])
        parts = self._text.useful_flops(understood, image_token_id=image_token_id)
        parts |= self._generating.flops(generated, image_token_id=image_token_id)
        return self._in_one_pass(parts, self._generating.lengths(generated))

    def _in_one_pass(self, parts: dict[str, int], lengths: list[int]) -> dict[str, int]:
        queries = formulas.joint_pass(self.recipe.model, lengths=lengths)
        return {name: flops for name, flops in parts.items() if name != "prompt"} | {"queries": queries}


def split_tasks(batch: Batch) -> tuple[Batch, Batch]:
    """Splits a batch into the samples for understanding and those for generation.

    Neither part is empty: if a task has no samples, it gets one whose loss is zero. Every part of the model must run on
    every rank, because other ranks wait in collectives for its gradients, and under ZeRO-3 for its share of the
    weights.
    """
    understood, generated = _any_row(_asked(batch)), _any_row(batch["draws"])
    return _select_rows(batch, understood), _select_rows(_requests(batch), generated)


def _asked(batch: Batch) -> Tensor:
    """Which rows are for understanding, bool [B]."""
    return batch["asked"] if "asked" in batch else (batch["labels"] != IGNORE).any(1)


def _requests(batch: Batch) -> Batch:
    """The columns of generation, by the names that they have in a batch for generation alone."""
    requests = {name: rows for name, rows in batch.items() if name not in _UNDERSTANDING}
    requests["input_ids"] = requests.pop("draw_ids")
    if "draw_lengths" in requests:
        requests["lengths"] = requests.pop("draw_lengths")
    return requests


def _without_pixels(batch: Batch) -> Batch:
    """The same columns, but nothing in those of images, features and noise: their values decide no count."""
    return {name: tensor if tensor.dim() <= 2 else tensor[:, :0] for name, tensor in batch.items()}


def _any_row(mask_B: Tensor) -> Tensor:
    """The mask, or one that selects the first row if it selects none."""
    return mask_B if mask_B.any() else torch.arange(len(mask_B), device=mask_B.device) == 0


def _select_rows(batch: Batch, mask_B: Tensor) -> Batch:
    """The rows selected by the mask, which is on the CPU, of columns on any device."""
    rows = mask_B.nonzero().flatten()
    on = {device: send(rows, device) for device in {tensor.device for tensor in batch.values()}}
    return {name: tensor[on[tensor.device]] for name, tensor in batch.items()}
