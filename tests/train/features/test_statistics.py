"""Channel statistics: those of all tokens at once, for any batching."""

import pytest
import torch

from blip3o.errors import DataError
from blip3o.train.features.statistics import channel_statistics


def test_statistics_are_those_of_all_tokens_together():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20, 4, 6, generator=generator) * torch.tensor([1e-3, 1, 2, 30, 5, 1]) + 100
    mean, std = channel_statistics(features.split([3, 9, 8]))
    tokens = features.double().flatten(0, 1)
    # Rounded to the 8 bits of bf16. The smallest deviation is 1e-5 of its mean: squares cancel to 1e-6 of it in fp64.
    assert torch.allclose(mean.double(), tokens.mean(0), rtol=2**-8)
    assert torch.allclose(std.double(), tokens.std(0, correction=0), rtol=2**-8)
    assert torch.equal(mean, mean.bfloat16().float())
    assert torch.equal(std, std.bfloat16().float())


def test_a_constant_channel_is_refused():
    features = torch.randn(4, 2, 3)
    features[..., 1] = 0.1
    with pytest.raises(DataError, match="1 of 3 channels are constant, e.g. 1"):
        channel_statistics([features])


def test_no_features_are_refused():
    with pytest.raises(DataError, match="no features"):
        channel_statistics([])
