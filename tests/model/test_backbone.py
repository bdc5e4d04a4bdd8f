"""The backbone adaptor against transformers itself, and the frozen prefix against the full pass."""

import pytest
import torch

from blip3o.model.backbone import Prompt
from blip3o.model.positions import multimodal_positions
from tests.model.families import transformers_twin
from tests.model.helpers import IMAGE_TOKEN, PAD, greedy, nano_model

GRID = 2  # the nano preset shows 32-pixel images as 2 x 2 language tokens


@pytest.fixture(scope="module")
def model():
    return nano_model(("backbone", "queries"))


def ragged(lengths, *, images=True, width=16):
    """Right-padded ids with, if asked, one image (4 tokens) after the second token of each row."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(10, 1000, (len(lengths), width), generator=generator)
    if images:
        ids[:, 2:6] = IMAGE_TOKEN
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    pixels = (
        torch.randint(0, 256, (len(lengths), 32, 32, 3), dtype=torch.uint8, generator=generator) if images else None
    )
    return Prompt(input_ids=torch.where(mask.bool(), ids, PAD), attention_mask=mask, pixels=pixels)


def test_positions_are_those_of_transformers(model):
    prompt = ragged([16, 9, 7])
    image = prompt.input_ids == IMAGE_TOKEN
    expected, _ = transformers_twin(model.backbone).model.get_rope_index(
        input_ids=prompt.input_ids,
        mm_token_type_ids=image.int(),
        image_grid_thw=torch.tensor([[1, 4, 4]] * 3),
        attention_mask=prompt.attention_mask,
    )
    got = multimodal_positions(image, prompt.attention_mask, GRID)
    real = prompt.attention_mask.bool().expand(3, -1, -1)
    assert torch.equal(got[real], expected[real])


def test_logits_are_those_of_transformers(model):
    prompt = ragged([16, 11])
    from blip3o.model.encoder import normalize_pixels
    from blip3o.model.vision import patchify

    expected = transformers_twin(model.backbone)(
        input_ids=prompt.input_ids,
        attention_mask=prompt.attention_mask,
        pixel_values=patchify(normalize_pixels(prompt.pixels), 8, 2),
        image_grid_thw=torch.tensor([[1, 4, 4]] * 2),
        mm_token_type_ids=(prompt.input_ids == IMAGE_TOKEN).int(),
    ).logits
    got = model.backbone.logits(model.backbone.hidden(prompt))
    real = prompt.attention_mask.bool()
    assert torch.allclose(got[real], expected[real], atol=1e-5)


def test_patches_are_those_of_the_published_image_processor():
    import numpy as np
    from transformers import Qwen2VLImageProcessor

    from blip3o.model.encoder import normalize_pixels
    from blip3o.model.vision import patchify

    image = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    expected = Qwen2VLImageProcessor(min_pixels=1, max_pixels=10**6)(images=[image], return_tensors="pt")
    got = patchify(normalize_pixels(torch.from_numpy(image)[None]), 14, 2)
    assert expected.image_grid_thw.tolist() == [[1, 4, 4]]
    assert torch.allclose(got, expected.pixel_values, atol=1e-5)


@pytest.mark.parametrize("images", [False, True])
def test_frozen_prefix_equals_the_full_pass_in_value_and_gradient(model, images):
    prompt = ragged([16, 9, 12], images=images)
    model.requires_grad_(False)
    model.queries.requires_grad_(True)
    weight = torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(3))
    results = []
    for function in (model.backbone.query_states, model.backbone.query_states_full):
        states = function(prompt, model.queries)
        gradient = torch.autograd.grad((states * weight).sum(), model.queries)[0]
        results.append((states.detach(), gradient))
    (fast, fast_gradient), (slow, slow_gradient) = results
    # Same arithmetic in another blocking, fp32: measured worst case 5e-7 relative.
    assert torch.allclose(fast, slow, atol=1e-5)
    assert (fast_gradient - slow_gradient).abs().max() <= 1e-5 * slow_gradient.abs().max()


def test_padding_and_neighbours_change_nothing(model):
    together = model.backbone.query_states(ragged([16, 9, 12]), model.queries)
    prompt = ragged([16, 9, 12])
    single = Prompt(
        input_ids=prompt.input_ids[1:2, :9], attention_mask=prompt.attention_mask[1:2, :9], pixels=prompt.pixels[1:2]
    )
    assert torch.allclose(model.backbone.query_states(single, model.queries), together[1:2], atol=1e-5)


def test_greedy_continuation_is_that_of_transformers(model):
    prompt = ragged([9, 9], images=False, width=9)
    expected = transformers_twin(model.backbone).generate(
        input_ids=prompt.input_ids, attention_mask=prompt.attention_mask, max_new_tokens=6, do_sample=False
    )[:, 9:]
    got = greedy(model.backbone, prompt, max_new_tokens=6, stop_ids=frozenset())
    assert got == expected.tolist()


def test_greedy_of_a_short_row_ignores_its_padding_and_stops(model):
    prompt = ragged([16, 9], images=False)
    both = greedy(model.backbone, prompt, max_new_tokens=5, stop_ids=frozenset())
    single = Prompt(input_ids=prompt.input_ids[1:, :9], attention_mask=prompt.attention_mask[1:, :9])
    assert greedy(model.backbone, single, max_new_tokens=5, stop_ids=frozenset())[0] == both[1]
    stopped = greedy(model.backbone, single, max_new_tokens=5, stop_ids=frozenset({both[1][2]}))
    assert stopped[0] == both[1][: both[1].index(both[1][2])]
