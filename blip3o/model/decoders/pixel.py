"""The pixel decoder: pooled features to an image, by flow matching in pixel space.

A coarse head maps each feature to its own square of the image. It is trained with the encoder, as its dense loss term,
so that the features keep what an image needs. A U-Net of `diffusers` then refines: from the noisy and the coarse image
it predicts the clean image as coarse + correction, and the flow's velocity follows, v = (z_σ − x̂) / σ. The correction
starts at zero, so an untrained decoder returns the coarse image. Pixels are in −1 … 1.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip3o.config.decoder import DecoderConfig
from blip3o.model.decoders.base import Decoder, Operation, Tensors
from blip3o.model.flow import Trajectory, trajectory
from blip3o.model.layers import RowConv2d, make_rows_independent


def to_unit(pixels_BSS3: Tensor) -> Tensor:
    """uint8 [B, S, S, 3] → float32 [B, 3, S, S] in −1 … 1."""
    return (pixels_BSS3.float() / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def to_pixels(images_B3SS: Tensor) -> Tensor:
    """Float [B, 3, S, S] in −1 … 1 → uint8 [B, S, S, 3], clamped and rounded to nearest."""
    return ((images_B3SS.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


class CoarseHead(nn.Module):
    """Maps each feature token, with its neighbours, to its square of pixels."""

    def __init__(self, config: DecoderConfig, *, feature_dim: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        side = config.image_size // grid
        self.expand = RowConv2d(feature_dim, config.coarse_width, kernel_size=3, padding=1)
        self.draw = RowConv2d(config.coarse_width, 3 * side * side, kernel_size=1)
        self.side = side

    def forward(self, features_BLF: Tensor) -> Tensor:
        """[B, grid², feature_dim] → [B, 3, S, S]."""
        x = features_BLF.transpose(1, 2).unflatten(-1, (self.grid, self.grid)).to(self.expand.weight.dtype)
        return F.pixel_shuffle(self.draw(F.gelu(self.expand(x))), self.side).to(features_BLF.dtype)


class PixelDecoder(Decoder):
    """Refines coarse images."""

    previews = True

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.config = config
        channels = 3 * config.fold**2
        self.unet = UNet2DModel(
            sample_size=config.image_size // config.fold,
            in_channels=2 * channels,
            out_channels=channels,
            block_out_channels=config.channels,
            layers_per_block=config.layers_per_block,
            down_block_types=["DownBlock2D"] * len(config.channels),
            up_block_types=["UpBlock2D"] * len(config.channels),
            add_attention=False,
            norm_num_groups=8,
        )
        make_rows_independent(self.unet)

    def clean(self, noisy_B3SS: Tensor, sigma_B: Tensor, coarse_B3SS: Tensor) -> Tensor:
        """The predicted clean image [B, 3, S, S] at noise level σ [B]."""
        stacked = F.pixel_unshuffle(torch.cat([noisy_B3SS, coarse_B3SS], dim=1), self.config.fold)
        correction = self.unet(stacked.to(self.unet.dtype), 1000 * sigma_B, return_dict=True).sample
        return coarse_B3SS + F.pixel_shuffle(correction, self.config.fold).to(noisy_B3SS.dtype)

    def prepare(self, inputs: Tensor, null_LF: Tensor | None) -> Tensors:
        """The coarse images [B, 3, S, S]."""
        return (inputs,)

    def start(self, noise: Tensor, steps: int | None = None) -> Trajectory:
        """Euler steps from pixel noise."""
        return trajectory("euler", noise, steps or self.config.num_inference_steps)

    def evaluate(self, point: Tensor, level_B: Tensor, prepared: Tensors) -> Tensor:
        """The velocity [B, 3, S, S] at noisy images and σ [B]."""
        return (point - self.clean(point, level_B, prepared[0])) / level_B.view(-1, 1, 1, 1)

    def images(self, reached: Tensor, prepared: Tensors) -> Tensor:
        """The data are the images."""
        return reached

    def operations(self, inputs: Tensor, noise: Tensor) -> Iterator[Operation]:
        """The U-Net at each step."""
        time = noise.new_empty(noise.shape[0])
        yield Operation(
            name="decoder", run=lambda: self.clean(noise, time, inputs), calls=self.config.num_inference_steps
        )
