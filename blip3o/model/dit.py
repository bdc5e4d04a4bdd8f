"""The diffusion transformer over pooled image features: NextDiT with gated cross-attention to the query states.

The mathematics and the state-dict names are those of the released BLIP3-o (reference: Lumina-Next, arXiv 2406.18583):
adaLN chunks in the order scale, gate, scale, gate; LayerNorm over all heads on queries and keys; rotary positions on
the image tokens only (never on the condition's keys); a cross-attention gate per head through tanh; sandwich RMS norms.

What depends only on the condition (its projection, its keys and values in every layer, its pooled embedding) is
computed once by `DiT.condition` and reused by every denoising step.

Legend: B batch, L latent tokens, N condition tokens, C model channels, T time embedding channels, H heads, D = C / H.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip3o.config.model import DiTConfig
from blip3o.model.condition import Condition, Denoiser
from blip3o.model.layers import RowLinear, SwiGLU, attend, rotary_grid, rotate, sinusoidal, split_heads

TIME_FREQUENCIES = 256


@dataclass(frozen=True, kw_only=True)
class DiTCondition(Condition):
    """A condition prepared for all steps: pooled [B, T], and per layer keys and values [B, H, N, D]."""

    pooled: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of its tensors, each with the batch as first dimension."""
        return self.pooled, *self.keys, *self.values

    def with_tensors(self, tensors: Sequence[Tensor]) -> "DiTCondition":
        """A condition of these tensors."""
        pooled, *pairs = tensors
        return DiTCondition(pooled=pooled, keys=tuple(pairs[: len(self.keys)]), values=tuple(pairs[len(self.keys) :]))

    def repeated(self, count: int) -> "DiTCondition":
        """The same condition for `count` batches, concatenated: [count · B, …]."""

        def repeat(tensor: Tensor) -> Tensor:
            return tensor.repeat(count, *[1] * (tensor.dim() - 1))

        return self.with_tensors([repeat(tensor) for tensor in self.tensors])


class CaptionProjection(nn.Module):
    """Projects the condition to the transformer's width: linear, GELU (tanh), linear."""

    def __init__(self, condition_dim: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(condition_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, states_BNH: Tensor) -> Tensor:
        """[B, N, condition_dim] → [B, N, C]."""
        return self.linear_2(F.gelu(self.linear_1(states_BNH), approximate="tanh"))


class TimestepEmbedder(nn.Module):
    """Sinusoid of 256, linear, SiLU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = RowLinear(TIME_FREQUENCIES, width)
        self.linear_2 = RowLinear(width, width)

    def forward(self, time_B: Tensor) -> Tensor:
        """Times in 0 … 1000, [B] → [B, T]."""
        return self.linear_2(F.silu(self.linear_1(sinusoidal(time_B, TIME_FREQUENCIES).to(self.linear_1.weight.dtype))))


class TimeCaptionEmbed(nn.Module):
    """Embedding of the time, and of the mean of the projected condition tokens."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(width)
        self.caption_embedder = nn.Sequential(nn.LayerNorm(dim), RowLinear(dim, width))


class PatchEmbedder(nn.Module):
    """Projects latent tokens, folded by `patch_size`, to the transformer's width."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, dim)


class Attention(nn.Module):
    """Projections of one attention: q, k, v without bias, LayerNorm over all heads on q and k."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        kv_dim = config.dim // config.heads * config.kv_heads
        self.to_q = nn.Linear(config.dim, config.dim, bias=False)
        self.to_k = nn.Linear(config.dim, kv_dim, bias=False)
        self.to_v = nn.Linear(config.dim, kv_dim, bias=False)
        self.norm_q = nn.LayerNorm(config.dim, eps=1e-5)
        self.norm_k = nn.LayerNorm(kv_dim, eps=1e-5)

    def query(self, x_BLC: Tensor) -> Tensor:
        """[B, L, C] → [B, H, L, D], normalised, not rotated."""
        return split_heads(self.norm_q(self.to_q(x_BLC)), self.heads)

    def key_value(self, x_BLC: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, C] → keys (normalised, not rotated) and values, each [B, H_kv, L, D]."""
        return split_heads(self.norm_k(self.to_k(x_BLC)), self.kv_heads), split_heads(self.to_v(x_BLC), self.kv_heads)


class CrossAttention(Attention):
    """The cross-attention's projections, and the output projection that both attentions share."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.to_out = nn.ModuleList([nn.Linear(config.dim, config.dim, bias=False)])


class AdaNorm(nn.Module):
    """RMS norm with scale and gate for attention and MLP taken from the embedding (LuminaRMSNormZero)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.linear = RowLinear(config.time_width, 4 * config.dim)
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)

    def forward(self, x_BLC: Tensor, embedding_BT: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the scaled norm of x [B, L, C], and gate_attn, scale_mlp, gate_mlp, each [B, 1, C]."""
        scale_attn, gate_attn, scale_mlp, gate_mlp = self.linear(F.silu(embedding_BT))[:, None].chunk(4, dim=-1)
        return self.norm(x_BLC) * (1 + scale_attn), gate_attn, scale_mlp, gate_mlp


class DiTBlock(nn.Module):
    """One block: self- and gated cross-attention in parallel, then SwiGLU, each between two RMS norms."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(config.heads))
        self.attn1 = Attention(config)
        self.attn2 = CrossAttention(config)
        self.feed_forward = SwiGLU(config.dim, config.mlp_width)
        self.norm1 = AdaNorm(config)
        self.norm1_context = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.norm2 = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn_norm1 = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn_norm2 = nn.RMSNorm(config.dim, eps=config.norm_eps)

    def forward(
        self, x_BLC: Tensor, embedding_BT: Tensor, context: tuple[Tensor, Tensor], rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        """[B, L, C] → [B, L, C]. `context`: keys and values of the condition; `rotary`: cosine and sine [L, D / 2]."""
        h, gate_attn, scale_mlp, gate_mlp = self.norm1(x_BLC, embedding_BT)
        keys, values = self.attn1.key_value(h)
        own = attend(rotate(self.attn1.query(h), *rotary), rotate(keys, *rotary), values)
        cross = attend(rotate(self.attn2.query(h), *rotary), *context)
        mixed = self.attn2.to_out[0]((own + cross * self.gate.tanh()[:, None]).flatten(2))
        x_BLC = x_BLC + gate_attn.tanh() * self.norm2(mixed)
        fed = self.feed_forward(self.ffn_norm1(x_BLC) * (1 + scale_mlp))
        return x_BLC + gate_mlp.tanh() * self.ffn_norm2(fed)


class OutputNorm(nn.Module):
    """Plain LayerNorm scaled by the embedding, then a linear layer to the latent's channels."""

    def __init__(self, config: DiTConfig, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = RowLinear(config.time_width, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=1e-6, elementwise_affine=False)
        self.linear_2 = nn.Linear(config.dim, out_channels)

    def forward(self, x_BLC: Tensor, embedding_BT: Tensor) -> Tensor:
        """[B, L, C] → [B, L, out_channels]."""
        return self.linear_2(self.norm(x_BLC) * (1 + self.linear_1(F.silu(embedding_BT))[:, None]))


class DiT(Denoiser[DiTCondition]):
    """Predicts the flow's velocity at noisy features, given the query states."""

    def __init__(self, config: DiTConfig, *, in_channels: int, grid: int, condition_dim: int) -> None:
        super().__init__()
        self.patch_size, self.grid = config.patch_size, grid
        self.head_dim = config.dim // config.heads
        folded = in_channels * config.patch_size**2
        self.patch_embedder = PatchEmbedder(folded, config.dim)
        self.caption_projection = CaptionProjection(condition_dim, config.dim)
        self.time_caption_embed = TimeCaptionEmbed(config.dim, config.time_width)
        self.layers = nn.ModuleList(DiTBlock(config) for _ in range(config.layers))
        self.norm_out = OutputNorm(config, folded)

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The blocks, first to last."""
        return self.layers

    def condition(self, states_BNH: Tensor) -> DiTCondition:
        """Prepares query states [B, N, condition_dim] for any number of steps. Zeros give the null condition."""
        projected = self.caption_projection(states_BNH)
        blocks = cast("Iterable[DiTBlock]", self.layers)  # a ModuleList has no element type
        pairs = [block.attn2.key_value(block.norm1_context(projected)) for block in blocks]
        return DiTCondition(
            pooled=self.time_caption_embed.caption_embedder(projected.mean(dim=1)),
            # Contiguous as after joining two: a compiled block is compiled again for another layout.
            keys=tuple(key.contiguous() for key, _ in pairs),
            values=tuple(value.contiguous() for _, value in pairs),
        )

    def forward(self, latents_BLF: Tensor, time_B: Tensor, condition: DiTCondition) -> Tensor:
        """Noisy features [B, L, in_channels] at times [B] in 0 … 1000 (1000 σ) → velocity of their shape and dtype."""
        # The flow's arithmetic stays in fp32 even with bf16 weights: σ in steps of 1/1000 needs more than 8 bits.
        x = self.patch_embedder.proj(self._fold(latents_BLF).to(self.patch_embedder.proj.weight.dtype))
        embedding = self.time_caption_embed.timestep_embedder(time_B) + condition.pooled
        rotary = rotary_grid(self.grid // self.patch_size, self.head_dim, x.device)
        for layer, key, value in zip(self.layers, condition.keys, condition.values, strict=True):
            x = layer(x, embedding, (key, value), rotary)
        return self._unfold(self.norm_out(x, embedding)).to(latents_BLF.dtype)

    def _fold(self, x_BLF: Tensor) -> Tensor:
        """Joins patch_size² neighbouring features into one token, channels last in a patch."""
        side, p = self.grid // self.patch_size, self.patch_size
        x = x_BLF.unflatten(1, (side, p, side, p)).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(x.shape[0], side * side, -1)

    def _unfold(self, x_BLF: Tensor) -> Tensor:
        """The inverse of `_fold`."""
        side, p = self.grid // self.patch_size, self.patch_size
        x = x_BLF.unflatten(1, (side, side)).unflatten(-1, (p, p, -1)).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(x.shape[0], self.grid**2, -1)
