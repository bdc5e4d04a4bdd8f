"""Contrastive training of a small CLIP encoder, with a dense loss that keeps image detail in the features."""

from torch import Tensor

from blip3o.model.decoders.pixel import to_unit
from blip3o.model.flops import formulas
from blip3o.model.flops.formulas import Grad
from blip3o.model.unified import UnifiedModel
from blip3o.train.objectives.base import Batch, Objective, padded_lengths
from blip3o.train.objectives.coarse import add_feature_noise, coarse_flops, feature_noise
from blip3o.train.objectives.draws import Draw


class Contrastive(Objective):
    """Trains encoder, contrastive head and coarse head: term `contrastive` over pairs, term `dense` over pixels."""

    @property
    def draws(self) -> tuple[Draw, ...]:
        """Noise on the features that the coarse head reads."""
        return feature_noise(self.recipe)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Pairs, and pixel values."""
        rows = batch["draw_key"].shape[0]
        return {"contrastive": rows, "dense": rows * 3 * self.recipe.model.decoder.image_size**2}

    def loss(self, model: UnifiedModel, batch: Batch) -> dict[str, Tensor]:
        """The contrastive loss of clean features, and squared errors of the image decoded from noisy ones."""
        features = model.encoder(batch["encoder_pixels"])
        target = to_unit(batch["decoder_pixels"])
        decoded = model.coarse(add_feature_noise(self.recipe, features, batch))
        return {
            "contrastive": model.contrastive(features, batch["input_ids"], self.mask(batch)).sum(),
            "dense": (decoded - target).square().sum(),
        }

    def flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """All parts are trained."""
        rows = len(batch["draw_key"])
        return {
            "encoder": formulas.encoder(self.recipe.model.encoder, images=rows, grad=Grad.BOTH),
            "contrastive": self._contrastive_flops(padded_lengths(batch)),
            "coarse": coarse_flops(self.recipe, rows=rows, features=Grad.BOTH),
        }

    def useful_flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """Captions are padded."""
        return {"contrastive": self._contrastive_flops(self.lengths(batch))}

    def _contrastive_flops(self, lengths: list[int]) -> int:
        model = self.recipe.model
        assert model.text_tower is not None  # the recipe's validator requires it of this objective
        features = model.encoder.num_tokens * model.latent_channels
        return formulas.contrastive(model.text_tower, features=features, lengths=lengths)
