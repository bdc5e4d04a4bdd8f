"""Prompts of a batch in one row without padding: where each token goes, and back.

Nothing here reads a value of a tensor on an accelerator: the lengths are known on the CPU.

Legend: B prompts, L padded tokens, T real tokens of all prompts, K key/value heads, D channels of one head.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from blip3o.model.language.decoder import Cache


def packed_index(attention_mask_BL: Tensor, total: int) -> Tensor:
    """For each of the T = `total` real tokens, its place among the B · L tokens of the padded rows, [T]."""
    return attention_mask_BL.flatten().argsort(stable=True, descending=True)[:total]


def padded_cache(parts: Sequence[Cache], attention_mask_BL: Tensor) -> Cache:
    """Keys and values [1, K, T, D] of packed prompts, in parts of T → padded ones, [B, K, L, D].

    Padding gets those of some real token: any finite numbers do, as no query may attend to them.
    """
    place = (attention_mask_BL.flatten().cumsum(0) - 1).clamp(min=0)
    shape = attention_mask_BL.shape

    def padded(layer: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(layer), dim=2)[0].index_select(1, place).unflatten(1, shape).transpose(0, 1)

    layers = zip(*parts, strict=True)
    return tuple((padded([k for k, _ in layer]), padded([v for _, v in layer])) for layer in layers)


def groups_of_rows(lengths: Sequence[int], most: int) -> Iterator[tuple[slice, slice]]:
    """Slices of consecutive rows, and of their packed tokens: at most `most` tokens, but at least one row with any."""
    first = begin = end = 0
    for row, length in enumerate(lengths):
        if length and end > begin and end + length - begin > most:
            yield slice(first, row), slice(begin, end)
            first, begin = row, end
        end += length
    yield slice(first, len(lengths)), slice(begin, end)
