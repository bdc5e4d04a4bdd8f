"""Packed prompts: query states and the queries' gradient are those of padded prompts, without work for padding."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blip3o.model.activation_checkpointing import checkpoint_layers
from blip3o.model.language.packing import groups_of_rows, packed_index, padded_cache
from tests.model.families import FAMILIES, backbone, prompt
from tests.model.helpers import IMAGE_TOKEN

# fp32, relative to the largest element: the same arithmetic in another blocking. Measured: 5e-7.
EXACT = 1e-5
QUERIES = 5
# A row of one token, none, all full, a row on its own, and images in rows of several lengths.
LENGTHS = {"ragged": (24, 19, 21), "short": (1, 24, 2), "empty": (0, 7, 0, 24, 0), "full": (24, 24), "one": (9,)}


@pytest.fixture(scope="module", params=FAMILIES)
def built(request):
    return backbone(request.param)


def start(built):
    return torch.randn(QUERIES, built.config.hidden_size, generator=torch.Generator().manual_seed(11)).requires_grad_()


def batch_of(built, lengths, *, side="right"):
    """Padded prompts that show images where they are long enough for one."""
    batch = prompt(built.config, lengths, side=side)
    short = torch.tensor([length < 2 + built.config.image_tokens for length in lengths])
    words = torch.where(short[:, None] & (batch.input_ids == IMAGE_TOKEN), 9, batch.input_ids)
    return replace(batch, input_ids=words)


def packed(batch):
    return replace(batch, lengths=batch.attention_mask.sum(1))


def states_and_gradient(built, batch, queries):
    states = built.query_states(batch, queries)
    weight = torch.randn(states.shape, generator=torch.Generator().manual_seed(3))
    return states.detach(), torch.autograd.grad((states * weight).sum(), queries)[0]


def worst(found, expected):
    pairs = zip(found, expected, strict=True)
    return max(((one - other).abs().max() / other.abs().max()).item() for one, other in pairs)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_states_and_gradient_are_those_of_padded_prompts(built, lengths, side):
    batch, queries = batch_of(built, lengths, side=side), start(built)
    padded = states_and_gradient(built, batch, queries)
    assert worst(states_and_gradient(built, packed(batch), queries), padded) <= EXACT


def test_rows_without_any_token_still_have_query_states(built):
    batch, queries = batch_of(built, (0, 0)), start(built)
    found = states_and_gradient(built, packed(batch), queries)
    assert all(torch.isfinite(part).all() for part in found)
    assert worst(found, states_and_gradient(built, batch, queries)) <= EXACT


def test_recomputed_queries_behind_packed_prompts_are_the_same():
    built = backbone("qwen3")
    batch, queries = packed(batch_of(built, LENGTHS["ragged"])), start(built)
    expected = states_and_gradient(built, batch, queries)
    checkpoint_layers(built.text.layers)
    assert worst(states_and_gradient(built, batch, queries), expected) == 0


def test_in_bf16_packed_prompts_err_as_padded_ones_do(built):
    batch, queries = batch_of(built, LENGTHS["ragged"]), start(built)
    exact, _ = states_and_gradient(built, batch, queries)
    half = backbone(built.config.family).bfloat16()
    errors = [
        (half.query_states(it, queries.bfloat16()).float() - exact).norm() / exact.norm()
        for it in (packed(batch), batch)
    ]
    # Measured: a ratio of 1.00 in every family.
    assert errors[0] < 1.25 * errors[1]


def test_a_neighbour_changes_nothing_but_rounding(built):
    batch, queries = batch_of(built, (24, 19)), start(built)
    other = replace(batch, input_ids=torch.cat([batch.input_ids[:1].roll(1, 1), batch.input_ids[1:]]))
    with torch.no_grad():
        one, two = (built.query_states(packed(it), queries) for it in (batch, other))
    assert worst([one[1]], [two[1]]) <= EXACT
    assert worst([one[0]], [two[0]]) > EXACT


def test_prompts_run_in_groups_that_a_cpus_cache_holds(monkeypatch):
    built = backbone("llama")
    batch, queries = packed(batch_of(built, (9, 0, 24, 5, 7, 0))), start(built)
    whole = states_and_gradient(built, batch, queries)
    monkeypatch.setattr("blip3o.model.layers.CPU_BYTES", 15 * built.config.mlp_width * 4)
    seen = []
    hook = built.text.layers[0].mlp.register_forward_hook(lambda *call: seen.append(call[2].shape[1]))
    parts = states_and_gradient(built, batch, queries)
    hook.remove()
    assert seen == [9, 24, 12, QUERIES]
    assert worst(parts, whole) <= EXACT


def test_padding_costs_a_prompt_no_operation():
    built = backbone("llama")
    lengths, queries = (24, 3, 9), start(built)

    def flops(*batches):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            for batch in batches:
                built.query_states(packed(batch), queries)
        return counter.get_total_flops()

    assert flops(batch_of(built, lengths)) == flops(*(batch_of(built, (length,)) for length in lengths))


def test_tokens_find_their_place_and_back():
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 1]])
    index = packed_index(mask, 4)
    assert index.tolist() == [0, 1, 7, 8]
    tokens = torch.arange(9.0)[index].view(1, 1, 4, 1)
    halves = [((part, -part),) for part in tokens.split([3, 1], dim=2)]
    [(keys, values)] = padded_cache(halves, mask)
    assert torch.equal(keys, -values) and keys.shape == (3, 1, 3, 1)
    assert keys[mask.bool()[:, None, :, None]].tolist() == [0, 1, 7, 8]


def test_groups_hold_whole_rows():
    def found(lengths, most):
        return [
            (list(range(len(lengths)))[rows], [tokens.start, tokens.stop])
            for rows, tokens in groups_of_rows(lengths, most)
        ]

    assert found([3, 4, 5], 100) == [([0, 1, 2], [0, 12])]
    assert found([3, 4, 5], 7) == [([0, 1], [0, 7]), ([2], [7, 12])]
    assert found([0, 9, 0, 1], 4) == [([0, 1, 2], [0, 9]), ([3], [9, 10])]
