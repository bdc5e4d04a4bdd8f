"""Attention: grouped queries with and without masks, and several texts in one row."""

import pytest
import torch
from torch.nn import functional as F

from blip3o.model.language.attention import additive_mask, attend_causally, attend_packed, by_group, causal_mask

HEADS, KV, DIM = 6, 2, 8


def heads(batch, tokens, keys, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, HEADS, tokens, DIM), (batch, KV, keys, DIM), (batch, KV, keys, DIM))
    return tuple(torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes)


def reference(q, k, v, visible):
    """By the definition, in fp64, with repeated keys and values."""
    k, v = (part.double().repeat_interleave(HEADS // KV, dim=1) for part in (k, v))
    scores = q.double() @ k.transpose(-1, -2) / DIM**0.5
    return (scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(2).float()


def check(found, expected, inputs):
    assert torch.allclose(found, expected, atol=1e-6)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(9))
    ours, theirs = (torch.autograd.grad((it * weight).sum(), inputs) for it in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("folded", [False, True], ids=["grouped kernel", "groups as tokens"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_mask_hides_padding_and_what_comes_later(tokens, folded):
    inputs = heads(2, tokens, 9)
    real = torch.tensor([[1] * 9, [0, 0, 1, 1, 0, 1, 1, 1, 1]])
    mask = causal_mask(real, tokens, torch.float32)
    # What `by_group` makes on a device whose masked kernels know no groups.
    mask = mask.repeat(1, 1, HEADS // KV, 1) if folded else by_group(mask, HEADS // KV)
    visible = torch.ones(tokens, 9, dtype=torch.bool).tril(9 - tokens) & real[:, None, None].bool()
    check(attend_causally(*inputs, mask, None), reference(*inputs, visible), inputs)


def test_groups_as_tokens_do_not_rely_on_the_layout_of_the_kernels_output(monkeypatch):
    """CUDA's memory-efficient kernel returns heads next to each other, as a view of tokens first."""
    inputs, kernel = heads(2, 3, 5), F.scaled_dot_product_attention
    mask = causal_mask(torch.ones(2, 5), 3, torch.float32).repeat(1, 1, HEADS // KV, 1)
    expected = attend_causally(*inputs, mask, None)
    tokens_first = lambda *args, **options: kernel(*args, **options).transpose(1, 2).contiguous().transpose(1, 2)  # noqa: E731
    monkeypatch.setattr(F, "scaled_dot_product_attention", tokens_first)
    assert torch.equal(attend_causally(*inputs, mask, None), expected)


def test_without_a_mask_a_token_attends_up_to_itself():
    inputs = heads(2, 7, 7)
    check(attend_causally(*inputs, None, None), reference(*inputs, torch.ones(7, 7, dtype=torch.bool).tril()), inputs)


@pytest.mark.parametrize("lengths", [(9,), (1, 1, 7), (4, 0, 5), (0, 9, 0)])
def test_texts_of_one_row_do_not_see_each_other(lengths):
    inputs = heads(1, 9, 9)
    text = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    visible = torch.ones(9, 9, dtype=torch.bool).tril() & (text[:, None] == text)
    check(attend_causally(*inputs, None, torch.tensor(lengths)), reference(*inputs, visible), inputs)


def test_the_operator_of_compiled_layers_is_the_same_function():
    inputs, lengths = tuple(part.detach() for part in heads(1, 9, 9)), torch.tensor([4, 0, 5])
    assert torch.equal(torch.ops.blip3o.attend_packed(*inputs, lengths), attend_packed(*inputs, lengths))
    torch.library.opcheck(
        torch.ops.blip3o.attend_packed, (*inputs, lengths), test_utils=("test_schema", "test_faketensor")
    )


def test_padding_that_sees_nothing_is_finite():
    inputs = heads(1, 3, 3)
    blind = additive_mask(torch.zeros(1, 3, 3, dtype=torch.bool), torch.float32)
    assert torch.isfinite(attend_causally(*inputs, blind, None)).all()
