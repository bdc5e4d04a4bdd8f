"""Multimodal rotary positions (time, row, column) of Qwen2.5-VL, padding-aware.

Text advances all three axes together. In an image of h x w language tokens that begins at position p, token (i, j) has
the position (p, p + i, p + j); the text after it goes on at p + max(h, w). Padding tokens take no position.
"""

import torch
from torch import Tensor


def multimodal_positions(image_mask_BL: Tensor, attention_mask_BL: Tensor, grid: int) -> Tensor:
    """Positions [3, B, L] (int64) of tokens of which each run of grid² image tokens is one image.

    `attention_mask_BL` is 1 on real tokens, at either side; padding gets position 0.
    """
    real = attention_mask_BL.bool()
    image = image_mask_BL.bool() & real
    order = image.long().cumsum(1) - 1  # ordinal of an image token among all image tokens of its row
    within = order.clamp(min=0) % (grid * grid)
    # A whole image advances the position by `grid`: its first token carries that advance, the others none.
    advance = torch.where(image, torch.where(within == 0, grid, 0), real.long())
    start = advance.cumsum(1) - advance
    # Tokens inside an image stand on its first token's start: take back what the first token already advanced.
    base = torch.where(image & (within > 0), start - grid, start)
    rows, columns = base + within // grid, base + within % grid
    positions = torch.stack([base, torch.where(image, rows, base), torch.where(image, columns, base)])
    return positions * real


def next_position(image_mask_BL: Tensor, attention_mask_BL: Tensor, grid: int) -> Tensor:
    """The position that follows each row's last real token, [B]."""
    positions = multimodal_positions(image_mask_BL, attention_mask_BL, grid)
    return positions.amax(dim=(0, 2)) + 1
