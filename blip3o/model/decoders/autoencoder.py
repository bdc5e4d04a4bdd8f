"""Autoencoders of `diffusers`: images in −1 … 1 to scaled latents, and back. Always frozen.

The latents of a variational autoencoder are the posterior's mean, not a sample, so a target is a function of its image.
Parameters keep the names of diffusers.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from blip3o.config.decoder import AutoencoderDecoderConfig, DcConfig, KlConfig
from blip3o.model.decoders.base import Decoder, Operation, Tensors
from blip3o.model.flow import Arrived, Trajectory


def build_autoencoder(config: KlConfig | DcConfig) -> Any:  # noqa: ANN401 - a module of diffusers
    """The `AutoencoderKL` or `AutoencoderDC` of a config."""
    return _kl(config) if isinstance(config, KlConfig) else _dc(config)


def _kl(config: KlConfig) -> Any:  # noqa: ANN401 - as above
    from diffusers import AutoencoderKL

    levels = len(config.channels)
    return AutoencoderKL(
        sample_size=config.image_size,
        latent_channels=config.latent_channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        norm_num_groups=config.groups,
        scaling_factor=config.scaling,
    )


def _dc(config: DcConfig) -> Any:  # noqa: ANN401 - as above
    from diffusers import AutoencoderDC

    plain = len(config.channels) - config.attention_levels
    blocks = ("ResBlock",) * plain + ("EfficientViTBlock",) * config.attention_levels
    scales = ((),) * plain + ((5,),) * config.attention_levels
    return AutoencoderDC(
        latent_channels=config.latent_channels,
        attention_head_dim=config.head_dim,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=config.channels,
        decoder_block_out_channels=config.channels,
        encoder_layers_per_block=config.encoder_layers,
        decoder_layers_per_block=config.decoder_layers,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=config.scaling,
    )


@torch.no_grad()
def to_latents(autoencoder: Any, images_B3SS: Tensor) -> Tensor:  # noqa: ANN401 - as above
    """Images [B, 3, S, S] in −1 … 1 → scaled latents [B, C, h, w], without gradient."""
    encoded = autoencoder.encode(images_B3SS.to(autoencoder.dtype))
    latents = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
    return latents.to(images_B3SS.dtype) * autoencoder.config.scaling_factor


def to_images(autoencoder: Any, latents_BChw: Tensor) -> Tensor:  # noqa: ANN401 - as above
    """Scaled latents [B, C, h, w] → images [B, 3, S, S], about −1 … 1."""
    scaled = latents_BChw / autoencoder.config.scaling_factor
    # One by one: an image does not depend on its company, and one fills a device.
    images = [autoencoder.decode(row.to(autoencoder.dtype)).sample for row in scaled.split(1)]
    return torch.cat(images).to(latents_BChw.dtype)


class AutoencoderDecoder(Decoder):
    """The autoencoder as encoder and decoder of generated latents (objective `vae_flow`), one token each."""

    def __init__(self, config: AutoencoderDecoderConfig) -> None:
        super().__init__()
        self.grid = config.autoencoder.grid
        self.vae = build_autoencoder(config.autoencoder)

    def encode(self, images_B3SS: Tensor) -> Tensor:
        """Images [B, 3, S, S] in −1 … 1 → latent tokens [B, h · w, C], row-major."""
        return to_latents(self.vae, images_B3SS).flatten(2).transpose(1, 2)

    def prepare(self, inputs: Tensor, null_LF: Tensor | None) -> Tensors:
        """The latent tokens [B, h · w, C] as latents [B, C, h, w]."""
        return (inputs.transpose(1, 2).unflatten(-1, (self.grid, self.grid)),)

    def start(self, noise: Tensor, steps: int | None = None) -> Trajectory:
        """No steps."""
        return Arrived(noise)

    def evaluate(self, point: Tensor, level_B: Tensor, prepared: Tensors) -> Tensor:
        """Never called: there are no steps."""
        raise AssertionError("an autoencoder takes no steps")

    def images(self, reached: Tensor, prepared: Tensors) -> Tensor:
        """The latents' images [B, 3, S, S]."""
        return to_images(self.vae, prepared[0])

    def operations(self, inputs: Tensor, noise: Tensor) -> Iterator[Operation]:
        """The autoencoder's own decoder."""
        yield Operation(name="latents to pixels", run=lambda: self(inputs, noise))
