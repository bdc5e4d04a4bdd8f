"""The DiT against a second derivation, written from the formulas in float64 with loops where the module has none."""

import math

import pytest
import torch

from blip3o.config.model import DiTConfig
from blip3o.model.dit import DiT
from tests.model.helpers import randomise

CONFIG = DiTConfig(dim=32, layers=2, heads=2, kv_heads=1, mlp_width=48, time_width=24)
GRID, CHANNELS, CONDITION = 3, 10, 20


@pytest.fixture(scope="module")
def dit():
    torch.manual_seed(0)
    module = DiT(CONFIG, in_channels=CHANNELS, grid=GRID, condition_dim=CONDITION).double()
    randomise(module)
    return module


def linear(w, prefix, x):
    y = x @ w[f"{prefix}.weight"].T
    return y + w[f"{prefix}.bias"] if f"{prefix}.bias" in w else y


def rms(w, prefix, x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{prefix}.weight"]


def layer_norm(x, eps, weight=None, bias=None):
    y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return y if weight is None else y * weight + bias


def silu(x):
    return x / (1 + (-x).exp())


def gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rope(x):
    """x [L, D]: channel pair 2m turns with the row, pair 2m + 1 with the column, frequency 10000^(-2m / (D / 2))."""
    out = x.clone()
    dim = x.shape[1]
    for token in range(x.shape[0]):
        row, column = divmod(token, GRID)
        for pair in range(dim // 2):
            frequency = 10000 ** (-2 * (pair // 2) / (dim // 2))
            angle = (row if pair % 2 == 0 else column) * frequency
            a, b = x[token, 2 * pair], x[token, 2 * pair + 1]
            out[token, 2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            out[token, 2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


def heads_of(x, count):
    return x.reshape(x.shape[0], count, -1).transpose(0, 1)


def attention(w, prefix, x, context, *, rotate_keys):
    q = layer_norm(linear(w, f"{prefix}.to_q", x), 1e-5, w[f"{prefix}.norm_q.weight"], w[f"{prefix}.norm_q.bias"])
    k = layer_norm(linear(w, f"{prefix}.to_k", context), 1e-5, w[f"{prefix}.norm_k.weight"], w[f"{prefix}.norm_k.bias"])
    v = linear(w, f"{prefix}.to_v", context)
    out = []
    for head, query in enumerate(heads_of(q, CONFIG.heads)):
        shared = head * CONFIG.kv_heads // CONFIG.heads
        key, value = heads_of(k, CONFIG.kv_heads)[shared], heads_of(v, CONFIG.kv_heads)[shared]
        key = rope(key) if rotate_keys else key
        weights = (rope(query) @ key.T / math.sqrt(query.shape[1])).softmax(-1)
        out.append(weights @ value)
    return torch.stack(out, 1)


def block(w, x, context, embedding):
    s_a, g_a, s_m, g_m = linear(w, "norm1.linear", silu(embedding)).chunk(4)
    h = rms(w, "norm1.norm", x) * (1 + s_a)
    own = attention(w, "attn1", h, h, rotate_keys=True)
    cross = attention(w, "attn2", h, rms(w, "norm1_context", context), rotate_keys=False)
    mixed = linear(w, "attn2.to_out.0", (own + cross * w["gate"].tanh()[:, None]).reshape(x.shape[0], -1))
    x = x + g_a.tanh() * rms(w, "norm2", mixed)
    f = rms(w, "ffn_norm1", x) * (1 + s_m)
    f = linear(
        w, "feed_forward.linear_2", silu(linear(w, "feed_forward.linear_1", f)) * linear(w, "feed_forward.linear_3", f)
    )
    return x + g_m.tanh() * rms(w, "ffn_norm2", f)


def reference(w, latents, time, states):
    """One sample: latents [L, F], time a number in 0 … 1000, states [N, H]."""
    c = linear(w, "caption_projection.linear_2", gelu_tanh(linear(w, "caption_projection.linear_1", states)))
    angles = [time * 10000 ** (-i / 128) for i in range(128)]
    sinusoid = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)
    prefix = "time_caption_embed"
    t = linear(
        w, f"{prefix}.timestep_embedder.linear_2", silu(linear(w, f"{prefix}.timestep_embedder.linear_1", sinusoid))
    )
    pooled = layer_norm(
        c.mean(0), 1e-5, w[f"{prefix}.caption_embedder.0.weight"], w[f"{prefix}.caption_embedder.0.bias"]
    )
    embedding = t + linear(w, f"{prefix}.caption_embedder.1", pooled)
    x = linear(w, "patch_embedder.proj", latents)
    for index in range(CONFIG.layers):
        head = f"layers.{index}."
        x = block(
            {name.removeprefix(head): value for name, value in w.items() if name.startswith(head)}, x, c, embedding
        )
    scaled = layer_norm(x, 1e-6) * (1 + linear(w, "norm_out.linear_1", silu(embedding)))
    return linear(w, "norm_out.linear_2", scaled)


def test_forward_equals_the_formulas(dit):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, GRID**2, CHANNELS, generator=generator).double()
    states = torch.randn(3, 7, CONDITION, generator=generator).double()
    times = torch.tensor([0.0, 333.5, 1000.0]).double()
    with torch.no_grad():
        got = dit(latents, times, dit.condition(states))
        weights = {name: value.detach() for name, value in dit.state_dict().items()}
        expected = torch.stack(
            [reference(weights, x, float(t), s) for x, t, s in zip(latents, times, states, strict=True)]
        )
    # Rotary tables and sinusoid are fp32 in the module (as upstream); the rest is fp64. Measured worst case 4e-6.
    assert torch.allclose(got, expected, atol=5e-5, rtol=1e-5)


def test_a_prepared_condition_serves_every_step(dit):
    states, latents = torch.randn(2, 5, CONDITION).double(), torch.randn(2, GRID**2, CHANNELS).double()
    prepared = dit.condition(states)
    for time in (1000.0, 500.0):
        t = torch.full((2,), time).double()
        assert torch.equal(dit(latents, t, prepared), dit(latents, t, dit.condition(states)))


def test_permuting_the_batch_permutes_the_output(dit):
    states, latents = torch.randn(4, 5, CONDITION).double(), torch.randn(4, GRID**2, CHANNELS).double()
    times = torch.rand(4).double() * 1000
    order = torch.tensor([2, 0, 3, 1])
    straight = dit(latents, times, dit.condition(states))
    permuted = dit(latents[order], times[order], dit.condition(states[order]))
    assert torch.allclose(straight[order], permuted, atol=1e-12)


def test_the_condition_matters_only_through_gate_and_pooled_embedding(dit):
    states = torch.randn(1, 5, CONDITION).double()
    latents, time = torch.randn(1, GRID**2, CHANNELS).double(), torch.tensor([400.0]).double()
    other = states + torch.randn_like(states)
    assert not torch.allclose(dit(latents, time, dit.condition(states)), dit(latents, time, dit.condition(other)))


def test_state_dict_names_are_the_released_ones(dit):
    names = set(dit.state_dict())
    for name in (
        "caption_projection.linear_1.weight", "patch_embedder.proj.bias", "norm_out.linear_2.bias",
        "time_caption_embed.timestep_embedder.linear_2.bias", "time_caption_embed.caption_embedder.0.weight",
        "layers.0.gate", "layers.1.attn1.norm_q.weight", "layers.0.attn2.to_out.0.weight",
        "layers.0.feed_forward.linear_3.weight", "layers.0.norm1.linear.bias", "layers.0.norm1.norm.weight",
        "layers.0.norm1_context.weight", "layers.0.ffn_norm2.weight",
    ):  # fmt: skip
        assert name in names
    assert not any("attn1.to_out" in name or name.endswith("_LE") for name in names)
