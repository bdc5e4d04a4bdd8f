"""The EVA-CLIP vision tower that makes generation targets, and its pooling.

Post-norm blocks: x + LN(attn(x)), x + LN(mlp(x)); fused qkv with a full bias; exact GELU; no final norm. The CLS token
is dropped and the patch grid average-pooled (BLIP3-o: 32 x 32 → 8 x 8 tokens of width 1792). State-dict names are the
released ones. Not here: preprocessing to pixels (blip3o.data.decode), training losses (blip3o.model.contrastive).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip3o.config.model import EncoderConfig
from blip3o.model.layers import attend, split_heads

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalize_pixels(pixels_BSS3: Tensor) -> Tensor:
    """uint8 [B, S, S, 3] → float32 [B, 3, S, S], standardised by CLIP's channel mean and deviation."""
    mean = torch.tensor(CLIP_MEAN, device=pixels_BSS3.device)
    std = torch.tensor(CLIP_STD, device=pixels_BSS3.device)
    return ((pixels_BSS3.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


class EvaAttention(nn.Module):
    """Multi-head self-attention with one fused, biased qkv projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """[B, L, width] → [B, L, width]."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x_BLC).chunk(3, dim=-1))
        return self.proj(attend(q, k, v).flatten(2))


class EvaMlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """[B, L, width] → [B, L, width]."""
        return self.fc2(F.gelu(self.fc1(x_BLC)))


class EvaBlock(nn.Module):
    """One post-norm transformer block."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = EvaAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = EvaMlp(config.width, config.mlp_width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """[B, L, width] → [B, L, width]."""
        x_BLC = x_BLC + self.norm1(self.attn(x_BLC))
        return x_BLC + self.norm2(self.mlp(x_BLC))


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens, row-major."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """[B, 3, S, S] → [B, (S / patch)², width]."""
        return self.proj(images_B3SS).flatten(2).transpose(1, 2)


class EvaEncoder(nn.Module):
    """Images to pooled features [B, num_tokens, channels]."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.patch_size, config.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches**2 + 1, config.width))
        self.blocks = nn.ModuleList(EvaBlock(config) for _ in range(config.layers))
        self.project = nn.Linear(config.width, config.feature_dim) if config.feature_dim else nn.Identity()

    def patch_features(self, pixels_BSS3: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] → [B, patches², width], the CLS token dropped."""
        x = self.patch_embed(normalize_pixels(pixels_BSS3).to(self.pos_embed.dtype))
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x[:, 1:]

    def forward(self, pixels_BSS3: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] → pooled features [B, grid², channels], row-major."""
        x = self.patch_features(pixels_BSS3).transpose(1, 2).unflatten(-1, (self.config.patches, self.config.patches))
        x = self.project(F.avg_pool2d(x, self.config.pool).flatten(2).transpose(1, 2))
        return F.layer_norm(x, x.shape[-1:]) if self.config.normalize else x
