"""Position ids for the rotary embedding. Padding, on either side, takes no position.

Multimodal position ids are Qwen2.5-VL's (time, row, column). Text advances all three axes together. In an image of
h x w language tokens that starts at position p, token (i, j) has position (p, p + i, p + j); the text after it
continues at p + max(h, w). Sequential position ids count every token alike. Text-only language models use them, and so
does BLIP3-o's own code for Qwen2.5-VL, on all three axes, when it generates images.
"""

import torch
from torch import Tensor

from blip3o.model.language.attention import additive_mask


def multimodal_positions(image_mask_BL: Tensor, attention_mask_BL: Tensor, grid: int) -> Tensor:
    """Multimodal position ids [3, B, L] (int64); each run of grid² image tokens is one image.

    `attention_mask_BL` is 1 on real tokens; padding gets position 0.
    """
    real = attention_mask_BL.bool()
    image = image_mask_BL.bool() & real
    order = image.long().cumsum(1) - 1  # ordinal of an image token among all image tokens of its row
    within = order.clamp(min=0) % (grid * grid)
    # A whole image advances the position by `grid`: its first token carries that advance, the others none.
    advance = torch.where(image, torch.where(within == 0, grid, 0), real.long())
    start = advance.cumsum(1) - advance
    # Tokens inside an image start where its first token does: undo the advance that the first token has added.
    base = torch.where(image & (within > 0), start - grid, start)
    rows, columns = base + within // grid, base + within % grid
    positions = torch.stack([base, torch.where(image, rows, base), torch.where(image, columns, base)])
    return positions * real


def sequential_positions(attention_mask_BL: Tensor) -> Tensor:
    """Sequential position ids [B, L] (int64) of each row's real tokens; padding gets position 0."""
    real = attention_mask_BL.long()
    return (real.cumsum(1) - 1) * real


def next_position(positions: Tensor) -> Tensor:
    """The position that follows each row's last real token, [B], from positions [3, B, L] or [B, L]."""
    return positions.amax(-1).view(-1, positions.shape[-2]).amax(0) + 1


def branched_positions(positions: Tensor, branches_BL: Tensor) -> Tensor:
    """Position ids [3, B, L] or [B, L], shifted so that every branch of a row starts where the first one does."""
    time = positions.view(-1, *branches_BL.shape)[0]
    begins = torch.diff(branches_BL, dim=1, prepend=torch.zeros_like(branches_BL[:, :1])) > 0
    own = torch.where(begins, time, 0).cummax(dim=1).values
    first = torch.where(begins & (branches_BL == 1), time, 0).sum(dim=1, keepdim=True)
    return positions - torch.where(branches_BL > 0, own - first, 0)


def branched_mask(attention_mask_BL: Tensor, branches_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask [B, 1, L, L]: 0 where a token (row) attends to another (column), else minus max.

    A token attends to real tokens up to itself that belong to branch 0 or to its own branch.
    """
    order = torch.arange(branches_BL.shape[1], device=branches_BL.device)
    asking, seen = branches_BL[:, :, None], branches_BL[:, None, :]
    visible = (order[:, None] >= order) & ((seen == 0) | (seen == asking)) & attention_mask_BL[:, None, :].bool()
    return additive_mask(visible, dtype)
