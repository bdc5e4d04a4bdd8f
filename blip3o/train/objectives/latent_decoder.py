"""Decoders that generate latents of a frozen autoencoder (SDXL, SANA), conditioned on a frozen encoder's features."""

import functools
import math
from typing import cast

import torch
from torch import Tensor

from blip3o.config.decoder import SanaDecoderConfig, SdxlDecoderConfig
from blip3o.model.decoders.latent import LatentDecoder
from blip3o.model.decoders.pixel import to_unit
from blip3o.model.describe import META
from blip3o.model.flops.counted import measure
from blip3o.model.unified import UnifiedModel
from blip3o.train.objectives.base import Batch, Objective
from blip3o.train.objectives.draws import Draw, drawn
from blip3o.train.stages import freeze, stage_of


class LatentDecoding(Objective):
    """Trains the decoder's network on `latents`: squared errors of its prediction, noise or velocity."""

    @property
    def draws(self) -> tuple[Draw, ...]:
        """Noise, time and whether to keep the condition."""
        decoder, seed = self.recipe.model.decoder, self.recipe.run.seed
        assert isinstance(decoder, SdxlDecoderConfig | SanaDecoderConfig)  # the objective's rows are selected by them
        return (Draw(kind="pixels", seed=seed, shape=decoder.noise_shape, dropout=decoder.condition_dropout),)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Elements of the latents."""
        return {"latents": batch["draw_key"].shape[0] * math.prod(self.recipe.model.decoder.noise_shape)}

    def loss(self, model: UnifiedModel, batch: Batch) -> dict[str, Tensor]:
        """Squared errors of one prediction per sample."""
        decoder, draws = cast("LatentDecoder", model.decoder), drawn(batch, "pixels")
        with torch.no_grad():
            # A dropped condition is the features of a black image, as in the null branch of guidance.
            features = model.encoder(batch["encoder_pixels"] * draws.keep[:, None, None, None])
        noised = decoder.noised(decoder.latents(to_unit(batch["decoder_pixels"])), draws.noise, draws.uniform)
        predicted = decoder.predict(noised.noisy, noised.time, decoder.condition(features))
        return {"latents": (predicted - noised.target).float().square().sum()}

    def flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """The frozen encoder, the network, and the autoencoder's encoder."""
        rows = batch["draw_key"].shape[0]
        return self.frozen_encoder(batch) | {name: rows * flops for name, flops in self._counted.items()}

    @functools.cached_property
    def _counted(self) -> dict[str, int]:
        """Operations for one image. They are counted, since there are no formulas for convolutions here."""
        config = self.recipe.model
        with META:
            model = UnifiedModel(config, image_token_id=0, parts=("decoder",), max_length=1)
            features, latents = torch.empty(1, *config.latent_shape), torch.empty(1, *config.decoder.noise_shape)
            image, time = torch.empty(1, 3, *[config.decoder.image_size] * 2), torch.empty(1)
        freeze(model, stage_of(self.recipe))
        decoder = cast("LatentDecoder", model.decoder)
        with torch.no_grad():
            encoding = measure(lambda: decoder.latents(image))

        def train() -> None:
            decoder.predict(latents, time, decoder.condition(features)).sum().backward()

        return {"decoder": measure(train), "autoencoder": encoding}
