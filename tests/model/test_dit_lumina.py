"""The DiT against diffusers' Lumina-Next, from which upstream made its own by projecting the condition first.

With our projected condition as its caption, the two are one function: the same names, the same numbers.
"""

import pytest
import torch
from diffusers import LuminaNextDiT2DModel
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

from blip3o.config.model import DiTConfig
from blip3o.model.dit import DiT
from blip3o.model.layers import rotary_grid
from tests.model.helpers import randomise

DIM, GRID, CHANNELS, CONDITION, QUERIES = 48, 8, 12, 20, 9
# 4864 at the released width: two thirds of four times the width, rounded up to a multiple of 256. Here of 16.
MLP_WIDTH = -(-int(2 * 4 * DIM / 3) // 16) * 16


@pytest.fixture(scope="module", params=[3, 1], ids=["all heads", "grouped"])
def pair(request):
    """Our DiT and Lumina's with the same random weights."""
    torch.manual_seed(0)
    config = DiTConfig(dim=DIM, layers=2, heads=3, kv_heads=request.param, mlp_width=MLP_WIDTH, time_width=DIM)
    ours = DiT(config, in_channels=CHANNELS, grid=GRID, condition_dim=CONDITION)
    randomise(ours)
    theirs = LuminaNextDiT2DModel(
        sample_size=GRID, patch_size=1, in_channels=CHANNELS, hidden_size=DIM, num_layers=2, num_attention_heads=3,
        num_kv_heads=request.param, multiple_of=16, learn_sigma=False, cross_attention_dim=DIM,
    )  # fmt: skip
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert missing == ["pad_token"]  # which Lumina itself never reads
    assert {name.split(".")[0] for name in unexpected} == {"caption_projection"}
    return ours.eval(), theirs.eval()


def both(pair, dtype):
    """Velocities [B, L, F] of both at the same inputs, in fp32."""
    ours, theirs = (model.to(dtype) for model in pair)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, GRID**2, CHANNELS, generator=generator).to(dtype)
    states = torch.randn(3, QUERIES, CONDITION, generator=generator).to(dtype)
    times = torch.tensor([1.0, 500.0, 1000.0])
    with torch.no_grad():
        got = ours(latents, times, ours.condition(states))
        expected = theirs(
            hidden_states=latents.transpose(1, 2).unflatten(-1, (GRID, GRID)),
            timestep=times,
            encoder_hidden_states=ours.caption_projection(states),
            encoder_mask=torch.ones(3, QUERIES),
            image_rotary_emb=get_2d_rotary_pos_embed_lumina(DIM // 3, 384, 384),
            cross_attention_kwargs={},
        ).sample
    return got.float(), expected.flatten(2).transpose(1, 2).float()


def test_fp32_velocities_are_luminas(pair):
    got, expected = both(pair, torch.float32)
    # The same operations in the same order, but for rotary angles made in fp64: measured worst case 1e-6.
    assert torch.allclose(got, expected, atol=1e-5)


def test_bf16_velocities_are_luminas_to_its_rounding(pair):
    exact, _ = both(pair, torch.float32)
    got, expected = both(pair, torch.bfloat16)
    # Ours may err as much as Lumina's own bf16 does, and by little more.
    assert (got - exact).abs().max() < 1.5 * (expected - exact).abs().max()


def test_rotary_tables_are_the_corner_of_luminas():
    table = get_2d_rotary_pos_embed_lumina(64, 384, 384)[:GRID, :GRID].flatten(0, 1)
    cos, sin = rotary_grid(GRID, 64, torch.device("cpu"))
    assert torch.allclose(torch.complex(cos, sin), table, atol=1e-6)  # theirs computes the angles in fp32


def test_rotary_tables_made_while_sampling_serve_training():
    rotary_grid.cache_clear()
    with torch.inference_mode():
        cos, _ = rotary_grid(2, 8, torch.device("cpu"))
    assert not cos.is_inference()
