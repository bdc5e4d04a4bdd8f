"""A new objective as a user would add it: this class and a row of the table (`tests/train/test_new_objective.py`)."""

import torch
from torch import Tensor

from blip3o.model.decoders.pixel import to_unit
from blip3o.model.flops.formulas import Grad
from blip3o.model.unified import UnifiedModel
from blip3o.train.objectives.base import Batch, Objective
from blip3o.train.objectives.coarse import coarse_flops
from blip3o.train.objectives.draws import Draw, drawn


class MaskedColor(Objective):
    """Trains the coarse head on partly masked features, by absolute errors of the image: `color`."""

    @property
    def draws(self) -> tuple[Draw, ...]:
        """A mask on the features."""
        return (Draw(kind="masks", seed=self.recipe.run.seed, shape=self.recipe.model.latent_shape),)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Pixel values."""
        return {"color": batch["draw_key"].shape[0] * 3 * self.recipe.model.decoder.image_size**2}

    def loss(self, model: UnifiedModel, batch: Batch) -> dict[str, Tensor]:
        """The mask depends on the sample only."""
        with torch.no_grad():
            features = model.encoder(batch["encoder_pixels"])
        image, mask = to_unit(batch["decoder_pixels"]), drawn(batch, "masks").noise > 0
        return {"color": (model.coarse(features * mask) - image).abs().sum()}

    def flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """The frozen encoder and the head."""
        rows = batch["draw_key"].shape[0]
        coarse = coarse_flops(self.recipe, rows=rows, features=Grad.ONE)
        return self.frozen_encoder(batch) | {"coarse": coarse}
