"""The DiT against a second derivation, written from the formulas in float64, at a small size and with the real heads.

`tests/model/test_dit_lumina.py` holds it against the published model that upstream changed.
"""

import math
from dataclasses import dataclass

import pytest
import torch

from blip3o.config.model import DiTConfig
from blip3o.model import layers
from blip3o.model.dit import DiT
from tests.model.helpers import randomise


@dataclass(frozen=True)
class Case:
    """Sizes of one DiT."""

    config: DiTConfig
    grid: int
    channels: int
    condition: int
    queries: int


SMALL = Case(DiTConfig(dim=32, layers=2, heads=2, kv_heads=1, mlp_width=48, time_width=24), 3, 10, 20, 7)
# The released heads, width, grid and queries; one block, a narrow MLP and few channels around them.
REAL_HEADS = Case(DiTConfig(dim=1792, layers=1, heads=28, kv_heads=28, mlp_width=64, time_width=32), 8, 24, 40, 64)


def build(case):
    torch.manual_seed(0)
    module = DiT(case.config, in_channels=case.channels, grid=case.grid, condition_dim=case.condition).double()
    randomise(module)
    return module


def inputs(case, count):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(count, case.grid**2, case.channels, generator=generator).double()
    states = torch.randn(count, case.queries, case.condition, generator=generator).double()
    return latents, states


@pytest.fixture(scope="module")
def dit():
    return build(SMALL)


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


def rope(x, grid):
    """x [L, D]: channel pair 2m turns with the row, pair 2m + 1 with the column, frequency 10000^(-2m / (D / 2))."""
    pairs = x.shape[1] // 2
    angle = torch.empty(grid * grid, pairs, dtype=torch.float64)
    for token in range(grid * grid):
        row, column = divmod(token, grid)
        for pair in range(pairs):
            angle[token, pair] = (row if pair % 2 == 0 else column) * 10000 ** (-2 * (pair // 2) / pairs)
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)  # the tables are fp32, as upstream's
    return torch.view_as_real(torch.view_as_complex(x.reshape(-1, pairs, 2)) * turn).reshape(x.shape)


def heads_of(x, count):
    return x.reshape(x.shape[0], count, -1).transpose(0, 1)


def attention(case, w, prefix, x, context, *, rotate_keys):
    config = case.config
    q = layer_norm(linear(w, f"{prefix}.to_q", x), 1e-5, w[f"{prefix}.norm_q.weight"], w[f"{prefix}.norm_q.bias"])
    k = layer_norm(linear(w, f"{prefix}.to_k", context), 1e-5, w[f"{prefix}.norm_k.weight"], w[f"{prefix}.norm_k.bias"])
    v = linear(w, f"{prefix}.to_v", context)
    out = []
    for head, query in enumerate(heads_of(q, config.heads)):
        shared = head * config.kv_heads // config.heads
        key, value = heads_of(k, config.kv_heads)[shared], heads_of(v, config.kv_heads)[shared]
        key = rope(key, case.grid) if rotate_keys else key
        weights = (rope(query, case.grid) @ key.T / math.sqrt(query.shape[1])).softmax(-1)
        out.append(weights @ value)
    return torch.stack(out, 1)


def block(case, w, x, context, embedding):
    s_a, g_a, s_m, g_m = linear(w, "norm1.linear", silu(embedding)).chunk(4)
    h = rms(w, "norm1.norm", x) * (1 + s_a)
    own = attention(case, w, "attn1", h, h, rotate_keys=True)
    cross = attention(case, w, "attn2", h, rms(w, "norm1_context", context), rotate_keys=False)
    mixed = linear(w, "attn2.to_out.0", (own + cross * w["gate"].tanh()[:, None]).reshape(x.shape[0], -1))
    x = x + g_a.tanh() * rms(w, "norm2", mixed)
    f = rms(w, "ffn_norm1", x) * (1 + s_m)
    f = linear(
        w, "feed_forward.linear_2", silu(linear(w, "feed_forward.linear_1", f)) * linear(w, "feed_forward.linear_3", f)
    )
    return x + g_m.tanh() * rms(w, "ffn_norm2", f)


def reference(case, w, latents, time, states):
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
    for index in range(case.config.layers):
        head = f"layers.{index}."
        own = {name.removeprefix(head): value for name, value in w.items() if name.startswith(head)}
        x = block(case, own, x, c, embedding)
    scaled = layer_norm(x, 1e-6) * (1 + linear(w, "norm_out.linear_1", silu(embedding)))
    return linear(w, "norm_out.linear_2", scaled)


@pytest.mark.parametrize(
    ("case", "times"), [(SMALL, [0.0, 333.5, 1000.0]), (REAL_HEADS, [966.667])], ids=["small", "real heads"]
)
def test_forward_equals_the_formulas(case, times):
    dit = build(case)
    latents, states = inputs(case, len(times))
    with torch.no_grad():
        got = dit(latents, torch.tensor(times).double(), dit.condition(states))
        weights = dict(dit.state_dict())
        expected = torch.stack(
            [reference(case, weights, x, t, s) for x, t, s in zip(latents, times, states, strict=True)]
        )
    # The sinusoid of the time is fp32 in the module (as upstream); the rest is fp64. Measured worst case 5e-6.
    assert torch.allclose(got, expected, atol=5e-5, rtol=1e-5)


def test_a_prepared_condition_serves_every_step(dit):
    latents, states = inputs(SMALL, 2)
    prepared = dit.condition(states)
    for time in (1000.0, 500.0):
        t = torch.full((2,), time).double()
        assert torch.equal(dit(latents, t, prepared), dit(latents, t, dit.condition(states)))


def test_permuting_the_batch_permutes_the_output(dit):
    latents, states = inputs(SMALL, 4)
    times = torch.rand(4).double() * 1000
    order = torch.tensor([2, 0, 3, 1])
    straight = dit(latents, times, dit.condition(states))
    permuted = dit(latents[order], times[order], dit.condition(states[order]))
    assert torch.allclose(straight[order], permuted, atol=1e-12)


def test_the_condition_matters_only_through_gate_and_pooled_embedding(dit):
    (latents, states), time = inputs(SMALL, 1), torch.tensor([400.0]).double()
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
    assert not any("attn1.to_out" in name for name in names)
    assert not dict(dit.named_buffers())


def test_rotation_is_exact_in_inference_and_the_same_up_to_rounding_in_training():
    angles = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
    cos, sin = angles.cos(), angles.sin()
    x = torch.randn(2, 9, 3, 6, generator=torch.Generator().manual_seed(2))
    x.requires_grad_()
    heads = x.transpose(1, 2)  # not contiguous, as in attention
    even, odd = heads.unflatten(-1, (-1, 2)).unbind(-1)
    expected = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    with torch.no_grad():
        assert torch.equal(layers.rotate(heads, cos, sin), expected)
    turned = layers.rotate(heads, cos, sin)
    torch.testing.assert_close(turned, expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(result.pow(3).sum(), x)[0] for result in (turned, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
