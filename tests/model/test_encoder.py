"""The EVA tower against a second derivation in float64, and its pooling."""

import math

import pytest
import torch

from blip3o.config.model import EncoderConfig
from blip3o.model.encoder import CLIP_MEAN, CLIP_STD, EvaEncoder
from tests.model.helpers import randomise

CONFIG = EncoderConfig(image_size=16, patch_size=4, width=12, layers=2, heads=2, mlp_width=20, pool=2)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    module = EvaEncoder(CONFIG)
    randomise(module)
    return module


def norm(w, name, x):
    y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    return y * w[f"{name}.weight"] + w[f"{name}.bias"]


def affine(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def reference(w, pixels):
    """One image [S, S, 3] uint8 → pooled tokens [grid², width]."""
    x = (pixels.double() / 255 - torch.tensor(CLIP_MEAN).double()) / torch.tensor(CLIP_STD).double()
    kernel = w["patch_embed.proj.weight"]
    tokens = [w["cls_token"][0, 0]]
    for row in range(4):
        for column in range(4):
            patch = x[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].permute(2, 0, 1)
            tokens.append((kernel * patch).sum((1, 2, 3)) + w["patch_embed.proj.bias"])
    x = torch.stack(tokens) + w["pos_embed"][0]
    for index in range(CONFIG.layers):
        name = f"blocks.{index}"
        q, k, v = affine(w, f"{name}.attn.qkv", x).chunk(3, -1)
        parts = []
        for head in range(CONFIG.heads):
            cut = slice(head * 6, head * 6 + 6)
            parts.append((q[:, cut] @ k[:, cut].T / math.sqrt(6)).softmax(-1) @ v[:, cut])
        x = x + norm(w, f"{name}.norm1", affine(w, f"{name}.attn.proj", torch.cat(parts, -1)))
        hidden = affine(w, f"{name}.mlp.fc1", x)
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + norm(w, f"{name}.norm2", affine(w, f"{name}.mlp.fc2", hidden))
    grid = x[1:].reshape(4, 4, -1)
    return torch.stack([grid[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean((0, 1)) for r in range(2) for c in range(2)])


def test_forward_equals_the_formulas(encoder):
    pixels = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    weights = {name: value.detach().double() for name, value in encoder.state_dict().items()}
    expected = torch.stack([reference(weights, image) for image in pixels])
    # fp32 module against fp64 formulas, two blocks: measured worst case 3e-6.
    assert torch.allclose(encoder(pixels).double(), expected, atol=3e-5)


def test_normalised_tokens_have_zero_mean_and_unit_variance():
    encoder = EvaEncoder(CONFIG.model_copy(update={"normalize": True}))
    randomise(encoder)
    features = encoder(torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8))
    assert torch.allclose(features.mean(-1), torch.zeros(2, 4), atol=1e-5)
    assert torch.allclose(features.var(-1, unbiased=False), torch.ones(2, 4), atol=1e-3)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="image_size 16 is not a multiple of patch_size 5"):
        EncoderConfig(image_size=16, patch_size=5, width=12, layers=1, heads=2, mlp_width=20, pool=2)
