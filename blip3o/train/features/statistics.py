"""Mean and standard deviation of each channel of features, to normalise latents (`blip3o.model.latent_scale`)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from blip3o.errors import DataError


def channel_statistics(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Features [B, L, F] of many images → mean and standard deviation of each channel over images and tokens, [F] fp32.

    Sums are fp64. The results are rounded to bf16, so that a model in bf16 and its export in fp32 have equal latents.
    Raises `DataError` if there are no features, or if a channel is constant, since its deviation would be a zero
    divisor.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for features in batches:
        rows = features.flatten(0, 1).double().cpu()
        count, total, squares = count + rows.shape[0], total + rows.sum(0), squares + rows.square().sum(0)
    if not count:
        raise DataError("there are no features to measure: give at least one image")
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    # A variance this small is the rounding error of the difference of two fp64 sums.
    constant = (variance <= 1e-12 * (squares / count)).nonzero().flatten().tolist()
    if constant:
        raise DataError(f"{len(constant)} of {mean.numel()} channels are constant, e.g. {constant[0]}: use more images")
    return mean.bfloat16().float(), variance.sqrt().bfloat16().float()
