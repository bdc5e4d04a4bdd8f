"""Channel statistics of the generated features, with which the flow works on latents of mean 0 and deviation 1.

Upstream generates EVA features unscaled, although some channels are far larger than others. The statistics are
measured once (`blip3o latents`), stored with the weights, and never trained.

Legend: L tokens, F channels.
"""

import torch
from torch import Tensor, nn


class LatentScale(nn.Module):
    """Mean and standard deviation of each channel, [F] fp32.

    They are buffers: a parameter would be rounded with the model to bf16, and every channel would move by that.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def normalize(self, features_LF: Tensor) -> Tensor:
        """Features [..., L, F] → latents."""
        return (features_LF - self.mean) / self.std

    def restore(self, latents_LF: Tensor) -> Tensor:
        """Latents [..., L, F] → features."""
        return latents_LF * self.std + self.mean
