"""The EVA tower against a second derivation in float64, SigLIP2 against transformers, pooling and provenance."""

import dataclasses
import json
import math

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional as F

from blip3o.config.model import EncoderConfig
from blip3o.model.encoder import CLIP_MEAN, CLIP_STD, EvaEncoder, build_encoder
from tests.model.helpers import randomise

SMALL = EncoderConfig(image_size=16, patch_size=4, width=12, layers=2, heads=2, mlp_width=20, pool=2)
# Heads and patches of the released tower: 16 heads of 112, 14-pixel patches.
REAL_HEADS = EncoderConfig(image_size=56, patch_size=14, width=1792, layers=1, heads=16, mlp_width=40, pool=2)
SIGLIP = EncoderConfig(
    kind="siglip2", image_size=64, patch_size=16, width=24, layers=3, heads=2, mlp_width=40, pool=2,
    resize={"mode": "stretch", "resample": "bilinear"},
)  # fmt: skip


def build(config):
    torch.manual_seed(0)
    module = build_encoder(config)
    randomise(module)
    return module


def pixels_for(config, count=2):
    shape = (count, config.image_size, config.image_size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def norm(w, name, x):
    y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    return y * w[f"{name}.weight"] + w[f"{name}.bias"]


def affine(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def reference(config, w, pixels):
    """One image [S, S, 3] uint8 → pooled tokens [grid², width], by the formulas of EVA-CLIP with post-norm."""
    p, side, dim = config.patch_size, config.patches, config.width // config.heads
    x = (pixels.double() / 255 - torch.tensor(CLIP_MEAN).double()) / torch.tensor(CLIP_STD).double()
    tokens = [w["cls_token"][0, 0]]
    for row in range(side):
        for column in range(side):
            patch = x[p * row : p * row + p, p * column : p * column + p].permute(2, 0, 1)
            tokens.append((w["patch_embed.proj.weight"] * patch).sum((1, 2, 3)) + w["patch_embed.proj.bias"])
    x = torch.stack(tokens) + w["pos_embed"][0]
    for index in range(config.layers):
        name = f"blocks.{index}"
        q, k, v = affine(w, f"{name}.attn.qkv", x).chunk(3, -1)
        parts = []
        for head in range(config.heads):
            cut = slice(head * dim, head * dim + dim)
            parts.append((q[:, cut] @ k[:, cut].T / math.sqrt(dim)).softmax(-1) @ v[:, cut])
        x = x + norm(w, f"{name}.norm1", affine(w, f"{name}.attn.proj", torch.cat(parts, -1)))
        hidden = affine(w, f"{name}.mlp.fc1", x)
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + norm(w, f"{name}.norm2", affine(w, f"{name}.mlp.fc2", hidden))
    grid = x[1:].reshape(side, side, -1)
    n, g = config.pool, config.grid
    return torch.stack([grid[n * r : n * r + n, n * c : n * c + n].mean((0, 1)) for r in range(g) for c in range(g)])


@pytest.mark.parametrize("config", [SMALL, REAL_HEADS], ids=["small", "real heads"])
def test_eva_equals_the_formulas(config):
    encoder, pixels = build(config), pixels_for(config)
    weights = {name: value.detach().double() for name, value in encoder.state_dict().items()}
    expected = torch.stack([reference(config, weights, image) for image in pixels])
    # fp32 module against fp64 formulas: measured worst case 4e-6 on values up to 8.
    assert torch.allclose(encoder(pixels).double(), expected, atol=3e-5)


def test_eva_in_fp64_equals_the_formulas_to_the_pixels_rounding():
    encoder, pixels = build(SMALL).double(), pixels_for(SMALL)
    expected = torch.stack([reference(SMALL, encoder.state_dict(), image) for image in pixels])
    # Pixels are standardised in fp32, as upstream does; the rest is fp64. Measured worst case 2.4e-7.
    assert torch.allclose(encoder(pixels), expected, atol=2e-6)


def test_state_dict_names_are_the_released_ones():
    names = {name.replace("blocks.0.", "blocks.i.") for name in EvaEncoder(REAL_HEADS).state_dict()}
    layers = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    block = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert names == {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"} | {
        f"blocks.i.{name}" for name in block
    }


def test_siglip_features_are_the_states_before_the_last_block_of_the_published_tower():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(1)
    published = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=64,
            patch_size=16,
        )
    ).eval()
    randomise(published)
    encoder = build_encoder(SIGLIP)
    own = {f"hf.{name}": tensor for name, tensor in published.state_dict().items()}
    encoder.load_state_dict({name: own[name] for name in encoder.state_dict()})
    pixels = pixels_for(SIGLIP)
    states = published(pixel_values=pixels.permute(0, 3, 1, 2) / 127.5 - 1, output_hidden_states=True).hidden_states[-2]
    pooled = F.adaptive_avg_pool2d(states.transpose(1, 2).unflatten(-1, (4, 4)), 2).flatten(2).transpose(1, 2)
    assert torch.allclose(encoder(pixels), pooled, atol=1e-5)


@pytest.mark.parametrize("config", [SMALL, SIGLIP], ids=["eva", "siglip"])
def test_bf16_weights_take_pixels_too(config):
    encoder, pixels = build(config), pixels_for(config)
    exact = encoder(pixels)
    rounded = encoder.bfloat16()(pixels)
    assert rounded.dtype == torch.bfloat16
    # Eight bits of mantissa through two or three blocks: measured worst case 0.006 of the largest value.
    assert (rounded.float() - exact).abs().max() < 0.02 * exact.abs().max()


def test_normalised_tokens_have_zero_mean_and_unit_variance():
    features = build(SMALL.model_copy(update={"normalize": True}))(pixels_for(SMALL))
    assert torch.allclose(features.mean(-1), torch.zeros(2, 4), atol=1e-5)
    assert torch.allclose(features.var(-1, unbiased=False), torch.ones(2, 4), atol=1e-3)


def test_provenance_names_the_weights_and_the_pixels():
    encoder = build(SIGLIP)
    provenance = dataclasses.asdict(encoder.provenance())
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["preprocessing"] == {
        "size": 64, "mode": "stretch", "resample": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3
    }  # fmt: skip
    assert build(SIGLIP).provenance() == encoder.provenance()
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    changed = encoder.provenance()
    assert changed.weights_sha256 != provenance["weights_sha256"]
    assert encoder.bfloat16().provenance().weights_sha256 != changed.weights_sha256


def test_the_digest_of_weights_is_that_of_their_bytes():
    import hashlib

    from blip3o.model.encoder import weights_sha256

    linear = torch.nn.Linear(2, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0]]))
        linear.bias.fill_(3.0)
    text = b"bias torch.float32 (1,)\n" + torch.tensor([3.0]).numpy().tobytes()
    text += b"weight torch.float32 (1, 2)\n" + torch.tensor([1.0, 2.0]).numpy().tobytes()
    assert weights_sha256(linear) == hashlib.sha256(text).hexdigest()


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="image_size 16 is not a multiple of patch_size 5"):
        EncoderConfig(image_size=16, patch_size=5, width=12, layers=1, heads=2, mlp_width=20, pool=2)


@pytest.mark.parametrize("config", [SMALL, SIGLIP], ids=["eva", "siglip"])
def test_a_frozen_tower_takes_as_many_images_at_once_as_a_cpus_cache_holds(config, monkeypatch):
    module, pixels = build(config), pixels_for(config, count=5)
    seen = []
    module.register_forward_hook(lambda *_: seen.append("whole"))
    tokens = module.tokens
    monkeypatch.setattr(module, "tokens", lambda images: seen.append(len(images)) or tokens(images))
    with torch.no_grad():
        whole = module(pixels)
        widest = config.patches**2 * max(config.mlp_width, 3 * config.width) * 4
        monkeypatch.setattr("blip3o.model.layers.CPU_BYTES", 2 * widest + 1)
        parts = module(pixels)
    trained = module(pixels)
    assert seen == [5, "whole", 2, 2, 1, "whole", 5, "whole"]
    assert trained.requires_grad
    assert torch.allclose(parts, whole, rtol=0, atol=1e-6)  # kernels sum in an order that depends on the batch
    assert torch.equal(trained, whole)


@pytest.mark.parametrize("config", [SMALL, SIGLIP], ids=["eva_clip", "siglip2"])
def test_compiled_layers_share_one_graph_and_give_the_same_features(config):
    encoder, pixels = build(config), pixels_for(config)
    with torch.no_grad(), torch.compiler.set_stance(force_backend="eager"):
        expected, before = encoder.encode_batch(pixels), counters["stats"]["unique_graphs"]
        encoder.compile_layers()
        assert torch.equal(encoder.encode_batch(pixels), expected)
        encoder.encode_batch(torch.cat([pixels, pixels]))
    assert counters["stats"]["unique_graphs"] - before == 1
