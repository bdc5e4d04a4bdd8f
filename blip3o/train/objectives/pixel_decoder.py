"""The pixel decoder and its coarse head: clean images from noisy ones, conditioned on a frozen encoder's features."""

import functools
from typing import cast

import torch
from torch import Tensor

from blip3o.model.decoders.pixel import PixelDecoder, to_unit
from blip3o.model.describe import META
from blip3o.model.flops.counted import measure
from blip3o.model.flops.formulas import Grad
from blip3o.model.flow import interpolate, training_sigma
from blip3o.model.unified import UnifiedModel
from blip3o.train.objectives.base import Batch, Objective
from blip3o.train.objectives.coarse import add_feature_noise, coarse_flops, feature_noise
from blip3o.train.objectives.draws import Draw, drawn
from blip3o.train.stages import freeze, stage_of


class PixelDecoding(Objective):
    """Trains coarse head and decoder: squared errors of the coarse image (`coarse`) and the clean image (`clean`)."""

    @property
    def draws(self) -> tuple[Draw, ...]:
        """Noise and time of the image, and noise on the features that the coarse head reads."""
        pixels = Draw(kind="pixels", seed=self.recipe.run.seed, shape=self.recipe.model.decoder.noise_shape)
        return (pixels, *feature_noise(self.recipe))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Pixel values."""
        pixels = batch["draw_key"].shape[0] * 3 * self.recipe.model.decoder.image_size**2
        return {"coarse": pixels, "clean": pixels}

    def loss(self, model: UnifiedModel, batch: Batch) -> dict[str, Tensor]:
        """Squared errors of both images, from one noise and time per sample."""
        image, draws = to_unit(batch["decoder_pixels"]), drawn(batch, "pixels")
        sigma = training_sigma(draws.uniform)
        coarse = model.coarse(add_feature_noise(self.recipe, _features(model, batch), batch))
        decoder = cast("PixelDecoder", model.decoder)
        clean = decoder.clean(interpolate(image, draws.noise, sigma), sigma, coarse)
        return {"coarse": (coarse - image).square().sum(), "clean": (clean - image).square().sum()}

    def flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """The frozen encoder, the U-Net and the coarse head, which gets gradients of both terms."""
        rows = batch["draw_key"].shape[0]
        return {
            **self.frozen_encoder(batch),
            "decoder": rows * self._unet,
            "coarse": coarse_flops(self.recipe, rows=rows, features=Grad.ONE),
        }

    @functools.cached_property
    def _unet(self) -> int:
        """Operations for one image. They are counted, since there are no formulas for convolutions here."""
        with META:
            model = UnifiedModel(self.recipe.model, image_token_id=0, parts=("coarse", "decoder"), max_length=1)
            image, time = torch.empty(1, *self.recipe.model.decoder.noise_shape), torch.empty(1)
        freeze(model, stage_of(self.recipe))
        decoder, coarse = cast("PixelDecoder", model.decoder), image.clone().requires_grad_()
        return measure(lambda: decoder.clean(image, time, coarse).sum().backward())


def _features(model: UnifiedModel, batch: Batch) -> Tensor:
    """The frozen encoder's features [B, L, F], in the coarse head's dtype."""
    if "features" in batch:
        return batch["features"].to(next(model.coarse.parameters()).dtype)
    with torch.no_grad():
        return model.encoder(batch["encoder_pixels"])
