"""The vision towers that compute generation targets, behind one interface, and their pooling.

`TargetEncoder` is the interface: uint8 pixels in, pooled features [B, tokens, channels] out, with provenance.

- `EvaEncoder`, EVA-CLIP-E/14+, BLIP3-o's target: post-norm blocks, x + LN(attn(x)), x + LN(mlp(x)); fused qkv with a
  full bias; exact GELU; no final norm; the CLS token is dropped. 32 x 32 patches are average-pooled to 8 x 8 tokens of
  width 1792. State-dict names are the released ones.
- `SiglipEncoder`, SigLIP2 of fixed resolution, the target of the SANA decoder: a `transformers` module.

Elsewhere: decoding images to pixels (blip3o.data.images.decode), the contrastive loss (blip3o.model.contrastive).

Legend: B batch, S image side, P patches along a side, L tokens, C channels.
"""

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip3o.config.model import EncoderConfig
from blip3o.model.layers import attend, rows_at_once, split_heads

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)


def normalize_pixels(
    pixels_BSS3: Tensor,
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
) -> Tensor:
    """uint8 [B, S, S, 3] → float32 [B, 3, S, S]: (x / 255 − mean) / std by channel, each operation rounded to fp32."""
    centre, scale = (_channels(values, pixels_BSS3.device) for values in (mean, std))
    return ((pixels_BSS3.float() / 255 - centre) / scale).permute(0, 3, 1, 2).contiguous()


@functools.cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The values on a device. A copy for each batch would wait for all work that was launched before it."""
    with torch.inference_mode(mode=False):  # else values first needed for inference could not be used in training
        return torch.tensor(values, device="cpu").to(device)


@dataclass(frozen=True, kw_only=True)
class EncoderProvenance:
    """What a stored feature depends on: only features of equal provenance may be mixed.

    `preprocessing` and `pooling` hold JSON values; `weights_sha256` is the result of the function of that name.
    """

    kind: str
    preprocessing: dict[str, Any]
    pooling: dict[str, Any]
    dtype: str
    weights_sha256: str


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor of the state dict, in the order of names."""
    return tensors_sha256(sorted(module.state_dict().items()))


def tensors_sha256(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The same over (name, tensor) pairs in the given order; only one tensor is in memory at a time."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


class TargetEncoder(nn.Module, ABC):
    """Maps images to the features that the DiT learns to generate, [B, num_tokens, channels]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    project: nn.Module

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """The tower's transformer blocks, all of one kind and size."""

    def compile_layers(self) -> None:
        """Compiles the blocks with torch.compile: one graph, which all of them share. Results differ by rounding.

        It is also that of a shard's last, smaller batch, so that features do not depend on the batches before them.
        """
        for layer in self.layers:
            layer.compile(dynamic=True)

    @abstractmethod
    def tokens(self, images_B3SS: Tensor) -> Tensor:
        """Standardised images [B, 3, S, S], in the weights' dtype → patch tokens [B, P², width], row-major."""

    def patch_features(self, pixels_BSS3: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] → patch tokens [B, P², width] before pooling."""
        images = normalize_pixels(pixels_BSS3, self.mean, self.std)
        return self.tokens(images.to(next(self.parameters()).dtype))

    def forward(self, pixels_BSS3: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] → pooled features [B, grid², channels], row-major."""
        config, rows = self.config, pixels_BSS3.shape[0]
        if not torch.is_grad_enabled():
            widest = config.patches**2 * max(config.mlp_width, 3 * config.width)
            rows = rows_at_once(pixels_BSS3, widest * next(self.parameters()).element_size())
        parts = [self.encode_batch(part) for part in pixels_BSS3.split(rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def encode_batch(self, pixels_BSS3: Tensor) -> Tensor:
        """As `forward`, but always with all images in one pass."""
        x = self.patch_features(pixels_BSS3).transpose(1, 2).unflatten(-1, (self.config.patches, self.config.patches))
        x = self.project(F.avg_pool2d(x, self.config.pool).flatten(2).transpose(1, 2))
        return F.layer_norm(x, x.shape[-1:]) if self.config.normalize else x

    def provenance(self) -> EncoderProvenance:
        """What these features depend on. Reads every weight once."""
        return self.provenance_of(weights_sha256(self), next(self.parameters()).dtype)

    def provenance_of(self, weights: str, dtype: torch.dtype) -> EncoderProvenance:
        """The same for weights of a given sha256 and dtype, whatever weights this module has."""
        config = self.config
        return EncoderProvenance(
            kind=config.kind,
            preprocessing={
                "size": config.image_size,
                **config.resize.model_dump(),
                "mean": list(self.mean),
                "std": list(self.std),
            },
            pooling={"average": config.pool, "tokens": config.num_tokens, "normalize": config.normalize},
            dtype=str(dtype).removeprefix("torch."),
            weights_sha256=weights,
        )


def _projection(config: EncoderConfig) -> nn.Module:
    return nn.Linear(config.width, config.feature_dim) if config.feature_dim else nn.Identity()


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


class EvaEncoder(TargetEncoder):
    """EVA-CLIP."""

    mean, std = CLIP_MEAN, CLIP_STD

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.patch_embed = PatchEmbed(config.patch_size, config.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches**2 + 1, config.width))
        self.blocks = nn.ModuleList(EvaBlock(config) for _ in range(config.layers))
        self.project = _projection(config)

    @property
    def layers(self) -> nn.ModuleList:
        """EVA's blocks."""
        return self.blocks

    def tokens(self, images_B3SS: Tensor) -> Tensor:
        """[B, 3, S, S] → [B, P², width], the CLS token dropped."""
        x = self.patch_embed(images_B3SS)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x[:, 1:]


class SiglipEncoder(TargetEncoder):
    """SigLIP2 of fixed resolution: the output of its last block, without final norm and pooling head.

    BLIP3-o's SANA decoder is conditioned on `hidden_states[-2]` of so400m-patch16-512, which has 27 blocks. A config
    with 26 layers gives them without computing the last block.
    """

    mean, std = SIGLIP_MEAN, SIGLIP_STD

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        from transformers import SiglipVisionConfig, SiglipVisionModel

        self.hf = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=config.width,
                intermediate_size=config.mlp_width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                vision_use_head=False,
            )
        )
        self.hf.post_layernorm = nn.Identity()
        self.project = _projection(config)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers of the `transformers` module."""
        return self.hf.encoder.layers

    def tokens(self, images_B3SS: Tensor) -> Tensor:
        """[B, 3, S, S] → [B, P², width]."""
        return self.hf(pixel_values=images_B3SS).last_hidden_state


def build_encoder(config: EncoderConfig) -> TargetEncoder:
    """The tower that a config names, uninitialised."""
    return {"eva_clip": EvaEncoder, "siglip2": SiglipEncoder}[config.kind](config)
