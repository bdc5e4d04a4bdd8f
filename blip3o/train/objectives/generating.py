"""Shared by the generating objectives: targets, query states after a frozen prefix, and their operations."""

import functools
import math
from abc import abstractmethod

import torch
from torch import Tensor

from blip3o.model.backbone import Prompt
from blip3o.model.describe import META
from blip3o.model.flops import formulas
from blip3o.model.flops.counted import measure
from blip3o.model.unified import UnifiedModel
from blip3o.train.objectives.base import Batch, Objective, padded_lengths


class Generating(Objective):
    """Predicts an image's latents from the query states of a backbone that the objective itself does not train."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """Elements of the predicted latents."""
        return self.counts_for(batch["draw_key"].shape[0])

    @abstractmethod
    def counts_for(self, rows: int) -> dict[str, int]:
        """The same for a number of samples."""

    @abstractmethod
    def predictor_flops(self, rows: int) -> dict[str, int]:
        """Operations of the trained predictor, by the name of its part."""

    def num_elements(self, rows: int) -> int:
        """The number of elements in the latents of `rows` samples."""
        return rows * math.prod(self.recipe.model.latent_shape)

    def target_and_states(self, model: UnifiedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """The latents to generate, [B, L, F], and the query states [B, N, H]."""
        with torch.no_grad():
            data = model.to_latents(self._features(model, batch))
        # Held-out samples run padded, in a fixed shape, as in sampling; packed sums differ in their last bits.
        lengths = batch.get("lengths") if torch.is_grad_enabled() else None
        states = model.query_states(
            Prompt(input_ids=batch["input_ids"], attention_mask=self.mask(batch), lengths=lengths)
        )
        return data, states

    def _features(self, model: UnifiedModel, batch: Batch) -> Tensor:
        """The features to generate, [B, L, F]: from the batch (as fp32) if it has them, else computed."""
        if "features" in batch:
            return batch["features"].float()
        return model.features(batch[self.recipe.model.generation.pixels])

    def flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """Operations of targets, prompt, queries and predictor."""
        rows = len(batch["input_ids"])
        # Prompts are packed; for the queries, their keys and values are padded again.
        prefix = formulas.prompt_and_queries(
            self.recipe.model, lengths=self.lengths(batch), context=padded_lengths(batch)
        )
        targets = self.frozen_encoder(batch) if self._autoencoder is None else {"encoder": rows * self._autoencoder}
        return {**targets, **prefix, **self.predictor_flops(rows)}

    def useful_flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """Queries attend to the padding of their prompts."""
        return formulas.prompt_and_queries(self.recipe.model, lengths=self.lengths(batch))

    @functools.cached_property
    def _autoencoder(self) -> int | None:
        """Operations of the autoencoder for one image; None if targets come from an encoder instead.

        They are counted, since there are no formulas for convolutions here. The autoencoder's latents are never cached.
        """
        config = self.recipe.model
        if config.decoder.generated is None:
            return None
        with META, torch.no_grad():
            model = UnifiedModel(config, image_token_id=0, parts=("decoder",), max_length=1)
            pixels = torch.empty(1, *[config.target_size] * 2, 3, dtype=torch.uint8)
            return measure(lambda: model.features(pixels))
