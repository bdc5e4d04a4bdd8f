"""A small CLIP, for the laptop: image and caption find each other, and the features keep what a picture needs."""

from torch import Tensor

from blip3o.model.decoders.pixel import to_unit
from blip3o.model.flops import formulas
from blip3o.model.flops.formulas import Grad
from blip3o.model.unified import UnifiedModel
from blip3o.train.objectives.base import Batch, Objective
from blip3o.train.objectives.coarse import augmented, coarse_flops


class Contrastive(Objective):
    """Trains encoder, contrastive head and coarse head: `contrastive` by pairs, `dense` by pixels of the image."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """Pairs, and pixels' values."""
        rows = batch["draw_key"].shape[0]
        return {"contrastive": rows, "dense": rows * 3 * self.recipe.model.decoder.image_size**2}

    def loss(self, model: UnifiedModel, batch: Batch) -> dict[str, Tensor]:
        """The contrastive loss of clean features, and squared errors of the image drawn from noisy ones."""
        features = model.encoder(batch["encoder_pixels"])
        target = to_unit(batch["decoder_pixels"])
        drawn = model.coarse(augmented(self.recipe, features, batch["draw_key"]))
        return {
            "contrastive": model.contrastive(features, batch["input_ids"], self.mask(batch)).sum(),
            "dense": (drawn - target).square().sum(),
        }

    def flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """All of it trains."""
        model, (rows, tokens) = self.recipe.model, batch["input_ids"].shape
        assert model.text_tower is not None  # the recipe's validator requires it of this objective
        features = model.encoder.num_tokens * model.latent_channels
        return {
            "encoder": formulas.encoder(model.encoder, images=rows, grad=Grad.BOTH),
            "contrastive": formulas.contrastive(model.text_tower, features=features, rows=rows, tokens=tokens),
            "coarse": coarse_flops(self.recipe, rows=rows, features=Grad.BOTH),
        }
