"""The frozen prefix against one full pass with gradients through everything: loss, every gradient, cost.

The model has grouped-query attention (4 query heads to 2 key/value heads); prompts are ragged, padded on either side,
with and without images, in fp32 and bf16, with and without activation checkpointing.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from blip3o.config.model import ModelConfig
from blip3o.config.presets.models import PRESETS
from blip3o.model.activation_checkpointing import checkpoint_activations
from blip3o.model.backbone import Prompt
from blip3o.model.flow import interpolate, velocity_target
from blip3o.model.unified import UnifiedModel, initialize
from tests.model.helpers import IMAGE_TOKEN, PAD, randomise

QUERIES = 8
# Two roundings of one sum in eight bits: over seeds the ratio of their errors was 0.7 to 1.5, each at most 0.15.
BF16_MARGIN, BF16_BOUND = 2.0, 0.3
WIDTH = 20  # of the prompts' arrays, tokens


def build():
    """Backbone, queries and DiT; all but the queries and the DiT frozen."""
    preset = PRESETS["nano"]
    sizes = {"hidden_size": 32, "heads": 4, "kv_heads": 2, "layers": 3}
    config = ModelConfig(**preset | {"num_queries": QUERIES, "backbone": preset["backbone"] | sizes})
    model = UnifiedModel(config, image_token_id=IMAGE_TOKEN, parts=("backbone", "queries", "dit"), max_length=WIDTH)
    initialize(model, 0)
    randomise(model)
    return freeze(model)


def freeze(model):
    model.backbone.requires_grad_(False)
    return model


def prompts(lengths, *, side, images):
    """Ragged ids, padded on one side, each with (if asked) one image of 4 tokens after its second token."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.full((len(lengths), WIDTH), PAD)
    mask = torch.zeros(len(lengths), WIDTH, dtype=torch.long)
    for row, length in enumerate(lengths):
        tokens = torch.randint(10, 1000, (length,), generator=generator)
        if images:
            tokens[2:6] = IMAGE_TOKEN
        cut = slice(0, length) if side == "right" else slice(WIDTH - length, WIDTH)
        ids[row, cut], mask[row, cut] = tokens, 1
    pixels = torch.randint(0, 256, (len(lengths), 32, 32, 3), dtype=torch.uint8, generator=generator)
    return Prompt(input_ids=ids, attention_mask=mask, pixels=pixels if images else None)


def loss_and_gradients(model, prompt, *, full):
    """The flow loss of fixed draws, and its gradient in every parameter that trains."""
    states = (model.backbone.query_states_full if full else model.backbone.query_states)(prompt, model.queries)
    generator = torch.Generator().manual_seed(3)
    count = prompt.input_ids.shape[0]
    data, noise = (torch.randn(count, *model.latent_shape, generator=generator).to(states.dtype) for _ in range(2))
    sigma = torch.rand(count, generator=generator)
    velocity = model.dit(interpolate(data, noise, sigma), 1000 * sigma, model.dit.condition(states))
    loss = (velocity - velocity_target(data, noise)).float().square().mean()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
    return loss.item(), {name: gradient.float() for name, gradient in zip(names, gradients, strict=True)}


def worst(ours, other):
    """The largest relative error over loss and gradients; a gradient's is relative to its own largest element.

    Left out is the bias of the cross-attention's keys: it shifts all logits of a query alike, so its gradient is zero,
    and what arithmetic gives instead is rounding.
    """
    errors = [
        (ours[1][name] - gradient).abs().max() / gradient.abs().max()
        for name, gradient in other[1].items()
        if not name.endswith("attn2.norm_k.bias")
    ]
    return max(abs(ours[0] - other[0]) / abs(other[0]), max(errors).item())


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recomputed"])
@pytest.mark.parametrize("images", [False, True], ids=["text", "images"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_every_gradient_are_those_of_the_full_pass(side, images, recompute):
    model, prompt = build(), prompts([20, 9, 13, 7], side=side, images=images)
    expected = loss_and_gradients(model, prompt, full=True)
    assert set(expected[1]) == {"queries"} | {f"dit.{name}" for name, _ in model.dit.named_parameters()}
    assert all(gradient.abs().max() > 0 for gradient in expected[1].values())
    if recompute:
        checkpoint_activations(model)
        # A recomputed full pass is the same arithmetic, so the same to the bit.
        assert worst(loss_and_gradients(model, prompt, full=True), expected) == 0
    # The same arithmetic in another blocking. Measured worst case 1e-6.
    assert worst(loss_and_gradients(model, prompt, full=False), expected) <= 1e-5


def test_padding_on_either_side_is_the_same_prompt():
    model = build()
    left, right = (
        loss_and_gradients(model, prompts([20, 9, 13], side=side, images=True), full=False)
        for side in ("left", "right")
    )
    assert worst(left, right) <= 1e-5


@pytest.mark.parametrize("images", [False, True], ids=["text", "images"])
def test_in_bf16_the_frozen_prefix_errs_as_the_full_pass_does(images):
    model, prompt = build(), prompts([20, 9, 13, 7], side="right", images=images)
    exact = loss_and_gradients(model, prompt, full=True)
    freeze(model.bfloat16())
    slow, fast = (worst(loss_and_gradients(model, prompt, full=full), exact) for full in (True, False))
    assert fast < min(BF16_MARGIN * slow, BF16_BOUND)


def test_recomputed_queries_still_see_their_prompt():
    model = build()
    checkpoint_activations(model)
    one, other = (
        model.backbone.query_states(prompts([length], side="right", images=False), model.queries) for length in (20, 9)
    )
    assert not torch.allclose(one, other, atol=1e-3)


def test_a_recomputed_layer_leaves_the_prompts_cache_as_it_was():
    model = build()
    checkpoint_activations(model)
    with torch.no_grad():
        cached = model.backbone.prefill(prompts([20], side="right", images=False))
    before = [tensor.clone() for layer in cached.cache for tensor in layer]
    longer = model.backbone.extend(cached, model.queries.expand(1, -1, -1))
    longer.states.sum().backward()
    after = [tensor for layer in cached.cache for tensor in layer]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert {tensor.shape[2] for layer in longer.cache for tensor in layer} == {WIDTH + QUERIES}


def test_a_prompt_may_be_recomputed_too():
    model, prompt = build(), prompts([20, 9], side="left", images=False)
    model.backbone.text.embed_tokens.requires_grad_()
    gradients = []
    for _ in range(2):
        cached = model.backbone.prefill(prompt)
        states = model.backbone.extend(cached, model.queries.expand(2, -1, -1)).states
        gradients.append(torch.autograd.grad(states.sum(), model.backbone.text.embed_tokens.weight)[0])
        checkpoint_activations(model)
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)


def flops(model, prompt, *, full):
    with FlopCounterMode(display=False) as counter:
        states = (model.backbone.query_states_full if full else model.backbone.query_states)(prompt, model.queries)
        states.sum().backward()
    return counter.get_total_flops()


def test_cost_is_one_pass_over_the_prompt_and_two_over_the_queries():
    model, prompt = build(), prompts([WIDTH], side="right", images=False)
    once = flops(model, prompt, full=True) / 2  # frozen weights have no gradient: backward costs one forward
    fast = flops(model, prompt, full=False)
    sizes = model.config.backbone
    # Behind the last keys and values of the prompt: queries, attention and output of as many channels, and the MLP.
    unused = 2 * WIDTH * sizes.hidden_size * (2 * sizes.hidden_size + 2 * WIDTH + 3 * sizes.mlp_width)
    expected = once * (WIDTH + 2 * QUERIES) / (WIDTH + QUERIES) - unused
    assert fast == pytest.approx(expected, rel=0.05)  # attention, a few percent here, grows otherwise than the rest
    checkpoint_activations(model)
    # A layer is computed again up to the last value that its gradients need, so a little less than whole.
    assert 2.7 * once < flops(model, prompt, full=True) < 3 * once
    again = flops(model, prompt, full=False) - fast
    assert 0.7 < again / (once * QUERIES / (WIDTH + QUERIES)) < 1


def test_behind_the_last_keys_and_values_a_prompt_costs_nothing():
    model, seen = build(), []
    last = model.backbone.text.layers[-1]
    for module in (last.self_attn.q_proj, last.self_attn.o_proj, last.mlp):
        module.register_forward_hook(lambda module, arguments, output: seen.append(output.shape[1]))
    prompt = prompts([WIDTH, 9], side="right", images=False)
    model.backbone.query_states(prompt, model.queries)
    assert seen == [QUERIES] * 3
    model.backbone.prefill(prompt)  # whose states are asked for
    assert seen == [QUERIES] * 3 + [WIDTH] * 3


@pytest.mark.parametrize("images", [False, True], ids=["text", "images"])
def test_prompts_run_in_groups_that_a_cpus_cache_holds_are_those_of_one_batch(images, monkeypatch):
    model, prompt = build(), prompts([WIDTH, 9, 14, 7, 20], side="right", images=images)
    whole = loss_and_gradients(model, prompt, full=False)
    monkeypatch.setattr("blip3o.model.layers.CPU_BYTES", 2 * model.config.backbone.mlp_width * WIDTH * 4)
    seen = []
    model.backbone.text.layers[0].mlp.register_forward_hook(lambda *call: seen.append(call[2].shape[:2]))
    parts = loss_and_gradients(model, prompt, full=False)
    assert seen == [(2, WIDTH), (2, WIDTH), (1, WIDTH), (5, QUERIES)]
    assert worst(parts, whole) < 1e-5  # kernels sum in an order that depends on the batch
