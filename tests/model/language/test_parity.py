"""The decoder against `transformers`: values, gradients of every parameter, decoding, in fp32 and bf16."""

import pytest
import torch

from benchmarks._transformers import inner
from blip3o.model.language.attention import causal_mask
from blip3o.model.positions import multimodal_positions, sequential_positions
from tests.model.families import FAMILIES, backbone, prompt, transformers_twin
from tests.model.helpers import IMAGE_TOKEN

LENGTHS = (24, 19, 21)
# fp32, relative to the largest element. Measured: 0, as the operations are the same; other kernels may add elsewhere.
VALUES, GRADIENTS = 1e-5, 1e-5
# Relative error of states against fp32: ours 0.0082 to 0.0093, theirs 0.0078 to 0.0107, at most 1.06 times theirs. The
# rotation and the norms' weights stay in fp32 here.
BF16_MARGIN = 1.25


def worst(found, expected):
    return ((found.float() - expected.float()).abs().max() / expected.float().abs().max()).item()


def inputs(built, *, side):
    """Embeddings, attention mask and position ids of padded rows; with images for a backbone that numbers them."""
    batch = prompt(built.config, LENGTHS, side=side)
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(*batch.input_ids.shape, built.config.hidden_size, generator=generator)
    if built.config.family != "qwen2_5_vl":
        return embeddings, batch.attention_mask, sequential_positions(batch.attention_mask)
    images = batch.input_ids == IMAGE_TOKEN
    return embeddings, batch.attention_mask, multimodal_positions(images, batch.attention_mask, 4)


def ours(text, embeddings, mask, positions):
    return text(embeddings, positions, causal_mask(mask, mask.shape[1], embeddings.dtype))[0]


def theirs(text, embeddings, mask, positions):
    return text(
        inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state


@pytest.fixture(params=FAMILIES)
def pair(request):
    """Our backbone, and the decoder of `transformers` with the same weights; both train."""
    built = backbone(request.param)
    twin = inner(built.config, transformers_twin(built))
    return built, twin.requires_grad_()


@pytest.mark.parametrize("side", ["left", "right"])
def test_values_and_every_gradient_are_those_of_transformers(pair, side):
    built, twin = pair
    text = built.text.requires_grad_()
    embeddings, mask, positions = inputs(built, side=side)
    real = mask.bool()
    weight = torch.randn(int(real.sum()), embeddings.shape[-1], generator=torch.Generator().manual_seed(2))
    states = []
    for run, module in ((ours, text), (theirs, twin)):
        leaf = embeddings.clone().requires_grad_()
        states.append(run(module, leaf, mask, positions)[real])
        (states[-1] * weight).sum().backward()
        module.input = leaf.grad
    assert worst(*states) <= VALUES
    assert worst(text.input[real], twin.input[real]) <= GRADIENTS
    expected = dict(twin.named_parameters())
    for name, parameter in text.named_parameters():
        if name == "embed_tokens.weight":  # not used: the inputs are embeddings
            continue
        # A bias of the keys shifts all scores of a query alike, so that its gradient is rounding of nothing.
        if not name.endswith("k_proj.bias"):
            assert worst(parameter.grad, expected[name].grad) <= GRADIENTS, name


def test_in_bf16_it_errs_as_transformers_does(pair):
    built, twin = pair
    embeddings, mask, positions = inputs(built, side="right")
    real = mask.bool()
    with torch.no_grad():
        exact = theirs(twin, embeddings, mask, positions)[real]
        half = embeddings.bfloat16()
        found = ours(built.text.bfloat16(), half, mask, positions)[real]
        expected = theirs(twin.bfloat16(), half, mask, positions)[real]
    assert found.dtype == torch.bfloat16
    errors = [(states.float() - exact).norm() / exact.norm() for states in (found, expected)]
    assert errors[0] < BF16_MARGIN * errors[1]


def test_rotary_angles_stay_exact_in_bf16():
    """A bf16 module must not round the angles: at position 200, eight bits would err by half a radian."""
    built = backbone("llama")
    far = torch.arange(200, 224).expand(3, -1)
    embeddings = torch.randn(3, 24, built.config.hidden_size, generator=torch.Generator().manual_seed(1))
    embeddings = embeddings.bfloat16()
    with torch.no_grad():
        text = built.text.bfloat16()
        near, moved = (text(embeddings, positions)[0] for positions in (far - 200, far))
    # Only differences of positions matter. Measured 0.007, and 0.05 with angles or frequencies in bf16.
    assert (near.float() - moved.float()).norm() / near.float().norm() < 0.02


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_cache_in_pieces_equals_one_pass(pair, side):
    """Prefill, then several tokens, then one by one."""
    built, _ = pair
    batch = prompt(built.config, LENGTHS, side=side)
    more = torch.randn(3, 6, built.config.hidden_size, generator=torch.Generator().manual_seed(4))
    cached = built.prefill(batch)
    states = []
    for part in more.split([3, 1, 2], dim=1):
        cached = built.extend(cached, part)
        states.append(cached.states)
    embeddings = torch.cat([built.embed(batch), more], dim=1)
    mask = torch.cat([batch.attention_mask, torch.ones(3, 6, dtype=torch.long)], dim=1)
    images = torch.cat([batch.input_ids == IMAGE_TOKEN, torch.zeros(3, 6, dtype=torch.bool)], dim=1)
    whole = ours(built.text, embeddings, mask, built.positions(images, mask, "native"))
    assert worst(torch.cat(states, dim=1), whole[:, -6:]) <= VALUES
    assert cached.attention_mask.tolist() == mask.tolist()
