"""The rotary position embedding of the decoder: tables in fp32, computed once per pass for all of its layers.

Channel i of a head turns together with channel i + D / 2, as in Llama and Qwen. No table is a module's buffer: buffers
would follow the module to bf16, whose eight bits are too few for the angles.

Legend: B batch, L tokens, H heads, D channels of one head, E = D / 2.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blip3o.config.backbone import BackboneConfig, Llama3Rope

Rotary = tuple[Tensor, Tensor]


def rotary_tables(config: BackboneConfig, positions: Tensor) -> Rotary:
    """Cosine and sine, each [B, 1, L, E] in fp32, of position ids [B, L] or, for time, row and column, [3, B, L]."""
    frequencies = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling, positions.device)
    if positions.dim() == 3:
        angles = positions.movedim(0, -1)[..., _axes(config.mrope_section, positions.device)] * frequencies
    else:
        angles = positions[..., None] * frequencies
    return angles.cos()[:, None], angles.sin()[:, None]


@functools.cache
def inverse_frequencies(head_dim: int, theta: float, scaling: Llama3Rope | None, device: torch.device) -> Tensor:
    """Angle per position of each pair of channels, [E] fp32: theta^(-2i / D), for Llama 3 with its long waves scaled.

    It is computed in fp32, as where the released weights were trained. Cached per device.
    """
    with torch.inference_mode(mode=False):  # else tables first made while sampling could not be used in training
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
        frequencies = 1.0 / theta**exponents
        if scaling is not None:
            turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
            span = scaling.high_freq_factor - scaling.low_freq_factor
            kept = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
            frequencies = kept * frequencies + (1 - kept) * frequencies / scaling.factor
        return frequencies.to(device)


@functools.cache
def _axes(sections: Sequence[int], device: torch.device) -> Tensor:
    """For each frequency, the axis of the position id that it turns with, [E]: first time, then row, then column."""
    with torch.inference_mode(mode=False):
        return torch.arange(3, device="cpu").repeat_interleave(torch.tensor(sections, device="cpu")).to(device)


def rotate_halves(x_BHLD: Tensor, rotary: Rotary) -> Tensor:
    """Turns the channel pairs (i, i + E) of x, in at least fp32; the dtype is that of x."""
    cos, sin = rotary
    first, second = x_BHLD.to(torch.promote_types(x_BHLD.dtype, torch.float32)).chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x_BHLD.dtype)
