"""Causal attention of grouped queries: over padded rows, after a cache, and over several texts packed into one row.

Keys and values are never repeated: query heads outnumber key/value heads by G = H / K, and each key/value head serves
its group of G.

Legend: B batch, L query tokens, S key tokens, T packed tokens, H query heads, K key/value heads, D channels of a head.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def additive_mask(visible_BLS: Tensor, dtype: torch.dtype) -> Tensor:
    """Scores [B, 1, L, S] to be added: 0 where a token attends to another, else the smallest number of `dtype`.

    That number is finite, so a padding token that attends to nothing gets a mean of all values instead of NaN.
    """
    scores = torch.zeros(visible_BLS.shape, dtype=dtype, device=visible_BLS.device)
    return scores.masked_fill(~visible_BLS, torch.finfo(dtype).min)[:, None]


def causal_mask(attention_mask_BS: Tensor, queries: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, L, S] of the last L = `queries` of S tokens: real ones up to each token itself."""
    order = torch.arange(attention_mask_BS.shape[1], device=attention_mask_BS.device)
    return additive_mask((order[-queries:, None] >= order) & attention_mask_BS[:, None, :].bool(), dtype)


def by_group(mask_B1LS: Tensor, groups: int) -> Tensor:
    """The mask for `attend_causally` on a device whose masked kernels know no groups, [B, 1, G · L, S].

    Without a mask, or on a CPU, torch's fused kernels take grouped queries as they are. CUDA's do not take both: the
    queries of a group then become more query tokens of one head. It is the same arithmetic without copies of keys.
    """
    return mask_B1LS if mask_B1LS.device.type == "cpu" else mask_B1LS.repeat(1, 1, groups, 1)


def attend_causally(
    q_BHLD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Tensor | None, lengths: Tensor | None
) -> Tensor:
    """Softmax attention [B, L, H · D] with scale 1 / sqrt(D).

    `mask` is additive, [B, 1, L, S] or as `by_group` makes it. Without one, L = S, and a token attends to all up to
    itself. With `lengths` (int64, on the CPU), the one row holds texts of these lengths, each by itself.
    """
    if lengths is not None:
        packed = torch.ops.blip3o.attend_packed if torch.compiler.is_compiling() else attend_packed
        return packed(q_BHLD, k_BKSD, v_BKSD, lengths).flatten(2)
    if mask is not None and mask.shape[2] != q_BHLD.shape[2]:
        grouped = q_BHLD.reshape(k_BKSD.shape[0], k_BKSD.shape[1], -1, q_BHLD.shape[-1])
        mixed = F.scaled_dot_product_attention(grouped, k_BKSD, v_BKSD, attn_mask=mask).reshape(q_BHLD.shape)
    else:
        mixed = F.scaled_dot_product_attention(
            q_BHLD, k_BKSD, v_BKSD, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
    return mixed.transpose(1, 2).flatten(2)


def attend_packed(q_1HTD: Tensor, k_1KTD: Tensor, v_1KTD: Tensor, lengths: Tensor) -> Tensor:
    """Causal attention within each of the texts that follow each other in one row, [1, T, H, D].

    One call per text: it needs no mask, and computes nothing between texts. A mask of T² elements would cost more than
    the calls save: with 16 texts of equal length, 16 times the pairs.
    """
    texts = [length for length in lengths.tolist() if length]
    each = zip(*(tensor.split(texts, dim=2) for tensor in (q_1HTD, k_1KTD, v_1KTD)), strict=True)
    mixed = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2) for q, k, v in each
    ]
    return torch.cat(mixed, dim=1)


# Compiled layers call this operator, so that lengths are data: a graph that saw them would be compiled for each batch.
_operator = torch.library.custom_op("blip3o::attend_packed", attend_packed, mutates_args=())


@_operator.register_fake
def _shape(q_1HTD: Tensor, k_1KTD: Tensor, v_1KTD: Tensor, lengths: Tensor) -> Tensor:
    return q_1HTD.new_empty(q_1HTD.transpose(1, 2).shape)
