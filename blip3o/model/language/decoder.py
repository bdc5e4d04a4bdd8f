"""A decoder-only transformer: embedding, layers of grouped-query attention and SwiGLU between RMS norms, last norm.

Parameter names are those of `transformers`, so that published weights, checkpoints and adapters fit. No layer knows its
number: all of them are one code object, which `torch.compile` compiles once. A layer takes and returns keys and values
as plain tensors, and changes none: a cache may be read again, also by a layer that recomputes its activations. Only
with `columns` it writes new keys and values into a cache, whose size then never changes.

Legend: B batch, L tokens, S tokens with those of the cache, C channels, K key/value heads, D channels of one head.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip3o.config.backbone import BackboneConfig
from blip3o.model.language.attention import attend_causally, by_group, causal_mask
from blip3o.model.language.rotary import Rotary, rotary_tables, rotate_halves

KeyValues = tuple[Tensor, Tensor]
Cache = tuple[KeyValues, ...]


class Attention(nn.Module):
    """Projections of one attention. Qwen2.5-VL's have biases; Qwen3 normalizes the channels of each head."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, bias = config.hidden_size, config.family == "qwen2_5_vl"
        self.q_proj = nn.Linear(width, config.heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, config.kv_heads * config.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, config.kv_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.heads * config.head_dim, width, bias=False)
        self.normalizes = config.family == "qwen3"
        if self.normalizes:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)

    def keys_and_values(self, x_BLC: Tensor, rotary: Rotary) -> KeyValues:
        """Rotated keys and values of normalized states, each [B, K, L, D]."""
        keys = self._heads(self.k_proj(x_BLC))
        keys = self.k_norm(keys) if self.normalizes else keys
        return rotate_halves(keys.transpose(1, 2), rotary), self._heads(self.v_proj(x_BLC)).transpose(1, 2)

    def forward(
        self,
        x_BLC: Tensor,
        rotary: Rotary,
        mask: Tensor | None,
        past: KeyValues | None,
        lengths: Tensor | None,
        columns: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalized states [B, L, C] → [B, L, C], and the keys and values, [B, K, S, D], those of `past` first.

        With `columns` (int64 [B], L = 1), those of row b are written into column `columns[b]` of `past`, in place.
        """
        queries = self._heads(self.q_proj(x_BLC))
        queries = rotate_halves((self.q_norm(queries) if self.normalizes else queries).transpose(1, 2), rotary)
        keys, values = self.keys_and_values(x_BLC, rotary)
        if past is not None and columns is not None:
            for stored, new in zip(past, (keys, values), strict=True):
                stored[torch.arange(len(columns), device=columns.device), :, columns] = new[:, :, 0]
            keys, values = past
        elif past is not None:
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        return self.o_proj(attend_causally(queries, keys, values, mask, lengths)), keys, values

    def _heads(self, x_BLC: Tensor) -> Tensor:
        return x_BLC.unflatten(-1, (-1, self.head_dim))


class SwiGLU(nn.Module):
    """down( silu(gate x) · up x ), without biases."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.hidden_size, bias=False)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """[B, L, C] → [B, L, C]."""
        return self.down_proj(F.silu(self.gate_proj(x_BLC)) * self.up_proj(x_BLC))


class DecoderLayer(nn.Module):
    """Attention, then SwiGLU, each after an RMS norm and added to its input."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = SwiGLU(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(
        self,
        x_BLC: Tensor,
        rotary: Rotary,
        mask: Tensor | None = None,
        past: KeyValues | None = None,
        lengths: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[B, L, C] → [B, L, C], and keys and values [B, K, S, D]. `mask` and `lengths`: see `attend_causally`."""
        mixed, keys, values = self.self_attn(self.input_layernorm(x_BLC), rotary, mask, past, lengths, columns)
        x_BLC = x_BLC + mixed
        return x_BLC + self.mlp(self.post_attention_layernorm(x_BLC)), keys, values

    def keys_and_values(self, x_BLC: Tensor, rotary: Rotary) -> KeyValues:
        """Only the keys and values [B, K, L, D]: no queries, no attention, no MLP."""
        return self.self_attn.keys_and_values(self.input_layernorm(x_BLC), rotary)


class Decoder(nn.Module):
    """The language model without its head."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(
        self,
        embeddings_BLC: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        past: Cache | None = None,
        *,
        keep: bool = False,
        columns: Tensor | None = None,
    ) -> tuple[Tensor, Cache]:
        """Embeddings → hidden states [B, L, C] after the last norm, and with `keep` a cache, else an empty one.

        `positions` are [B, L] or [3, B, L]; `mask` is additive, [B, 1, L, S]; without it, all tokens are real. The new
        cache holds the tokens of `past`, then the new ones. With `columns` (int64 [B], L = 1), the new token of row b
        is written into column `columns[b]` of `past`, in place, and S is that cache's size.
        """
        # Contiguous as the layers' outputs are, or compiled layers would need a graph of their own for the first.
        rotary, x = rotary_tables(self.config, positions), embeddings_BLC.contiguous()
        if mask is None and past is not None:
            real = positions.new_ones(x.shape[0], past[0][0].shape[2] + x.shape[1])
            mask = causal_mask(real, x.shape[1], x.dtype)
        mask = None if mask is None else by_group(mask, self.config.heads // self.config.kv_heads)
        cache: list[KeyValues] = []
        for number, layer in enumerate(self.layers):
            x, keys, values = layer(x, rotary, mask, None if past is None else past[number], None, columns)
            if keep:
                cache.append((keys, values))
        return self.norm(x), tuple(cache)

    def fill(
        self,
        embeddings_BLC: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Cache:
        """As `forward`, but gives only the cache: nothing behind the last layer's keys and values is computed.

        With `lengths` (int64, on the CPU), the one row holds several texts of these lengths that do not attend to each
        other; keys and values are then [1, K, T, D].
        """
        rotary, x = rotary_tables(self.config, positions), embeddings_BLC
        mask = None if mask is None else by_group(mask, self.config.heads // self.config.kv_heads)
        cache: list[KeyValues] = []
        for layer in self.layers[:-1]:
            x, keys, values = layer(x, rotary, mask, None, lengths)
            cache.append((keys, values))
        return *cache, cast("DecoderLayer", self.layers[-1]).keys_and_values(x, rotary)
