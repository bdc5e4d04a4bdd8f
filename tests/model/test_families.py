"""Every family of backbones against transformers itself, with padding on either side, and token by token."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from benchmarks._transformers import inner
from blip3o.config.backbone import BackboneConfig
from blip3o.model.backbone import Backbone, Prompt
from blip3o.model.language.rotary import inverse_frequencies
from blip3o.model.positions import multimodal_positions, next_position, sequential_positions
from blip3o.model.unified import UnifiedModel, initialize
from tests.model.families import (
    FAMILIES,
    QWEN_VISION,
    SIDE,
    SIGLIP_VISION,
    TEXT,
    backbone,
    prompt,
    row_of,
    transformers_twin,
)
from tests.model.helpers import IMAGE_TOKEN, greedy, nano_config

LENGTHS = (24, 19, 21)
# The same arithmetic in another blocking, fp32. Measured worst case 3e-6 on states of order 1.
EXACT = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(scope="module", params=FAMILIES)
def built(request) -> Backbone:
    return backbone(request.param)


def queries(config: BackboneConfig, count: int = 5) -> torch.Tensor:
    return torch.randn(count, config.hidden_size, generator=torch.Generator().manual_seed(11))


def renumbered(built: Backbone, numbering: str) -> Backbone:
    """The same weights with another numbering of the tokens before the queries."""
    other = Backbone(built.config.model_copy(update={"positions": numbering}), image_token_id=IMAGE_TOKEN)
    other.load_state_dict(built.state_dict())
    return other.eval().requires_grad_(requires_grad=False)


def transformers_states(built: Backbone, one: Prompt, extra=None) -> torch.Tensor:
    """Hidden states of one unpadded row by the transformers model itself, which numbers embeddings by arange."""
    embeddings = built.embed(one)
    if extra is not None:
        embeddings = torch.cat([embeddings, extra[None]], dim=1)
    text = inner(built.config, transformers_twin(built))
    return text(inputs_embeds=embeddings, use_cache=False).last_hidden_state[0]


def test_each_family_has_the_parameters_of_the_model_it_is_named_after(built):
    twin = transformers_twin(built)
    assert twin.config.model_type == built.config.family
    # In the same order: optimizers number parameters by it.
    ours, theirs = ([(name, p.shape) for name, p in it.named_parameters()] for it in (built.hf, twin))
    assert ours == theirs
    tied = built.hf.lm_head.weight is built.text.embed_tokens.weight
    assert tied is built.config.tied


def test_rotary_frequencies_are_those_of_the_family(built):
    config = built.config
    frequencies = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    if config.rope_scaling is not None:  # Llama 3.1: long waves are stretched, short ones kept, a ramp between them
        scaling = config.rope_scaling
        turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = kept * frequencies + (1 - kept) * frequencies / scaling.factor
    found = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling, torch.device("cpu"))
    assert torch.allclose(found.double(), frequencies, rtol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_state(built, side):
    batch = prompt(built.config, LENGTHS, side=side)
    together = built.hidden(batch)
    for row in range(len(LENGTHS)):
        single = built.hidden(row_of(batch, row))[0]
        assert torch.allclose(together[row, batch.attention_mask[row].bool()], single, **EXACT)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_states_of_sequential_families_are_those_of_transformers(family):
    built = backbone(family)
    batch = prompt(built.config, LENGTHS)
    together = built.hidden(batch)
    for row in range(len(LENGTHS)):
        expected = transformers_states(built, row_of(batch, row))
        assert torch.allclose(together[row, batch.attention_mask[row].bool()], expected, **EXACT)


@pytest.mark.parametrize("side", ["left", "right"])
def test_states_of_qwen2_5_vl_are_those_of_transformers(side):
    built = backbone("qwen2_5_vl")
    batch = prompt(built.config, LENGTHS, side=side)
    grid = QWEN_VISION.grid * QWEN_VISION.merge
    twin = transformers_twin(built)
    positions, _ = twin.model.get_rope_index(
        input_ids=batch.input_ids,
        mm_token_type_ids=(batch.input_ids == IMAGE_TOKEN).int(),
        image_grid_thw=torch.tensor([[1, grid, grid]] * len(LENGTHS)),
        attention_mask=batch.attention_mask,
    )
    expected = inner(built.config, twin)(
        inputs_embeds=built.embed(batch), attention_mask=batch.attention_mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    real = batch.attention_mask.bool()
    assert torch.allclose(built.hidden(batch)[real], expected[real], **EXACT)


def test_siglip_tokens_are_the_projected_last_states_of_the_tower():
    built = backbone("qwen3")
    batch = prompt(built.config, LENGTHS)
    tower, projector = built.vision.vision_tower, built.vision.mm_projector
    pixels = (batch.pixels.double() / 255 - 0.5) / 0.5
    states = tower(pixel_values=pixels.permute(0, 3, 1, 2).float()).last_hidden_state.double()
    first = F.gelu(F.linear(states, projector[0].weight.double(), projector[0].bias.double()))
    expected = F.linear(first, projector[2].weight.double(), projector[2].bias.double()).float()
    assert torch.allclose(built.embed(batch)[batch.input_ids == IMAGE_TOKEN], expected.flatten(0, 1), **EXACT)


def test_each_branch_equals_itself_on_its_own(built):
    batch = prompt(built.config, (40, 33), width=40)
    stem, order = 3 + built.config.image_tokens, torch.arange(40)
    second = stem + torch.tensor([[9], [4]])  # where each row's second branch begins
    branches = ((order >= stem).long() + (order >= second)) * batch.attention_mask
    together = built.hidden(replace(batch, branches=branches))
    for row in range(2):
        for number in (1, 2):
            kept = (order < stem) | (branches[row] == number)
            text = batch.input_ids[row : row + 1, kept]
            pixels = None if batch.pixels is None else batch.pixels[row : row + 1]
            single = built.hidden(Prompt(input_ids=text, attention_mask=torch.ones_like(text), pixels=pixels))[0]
            assert torch.allclose(together[row, kept], single, **EXACT)


def test_windows_limit_what_a_patch_attends_to():
    narrow = backbone("qwen2_5_vl")
    wide = backbone("qwen2_5_vl", vision=QWEN_VISION.model_copy(update={"window": None}))
    pixels = torch.randint(0, 256, (1, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = [built.embed_images(pixels, dtype=torch.float32) for built in (narrow, wide)]
    assert not torch.allclose(*seen, atol=1e-3)


@pytest.mark.parametrize("numbering", ["native", "upstream"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_frozen_prefix_equals_the_full_pass_in_value_and_gradient(built, side, numbering):
    numbered = renumbered(built, numbering)
    batch = prompt(built.config, LENGTHS, side=side)
    start = queries(built.config).requires_grad_()
    weight = torch.randn(len(LENGTHS), *start.shape, generator=torch.Generator().manual_seed(3))
    fast, slow = numbered.query_states(batch, start), numbered.query_states_full(batch, start)
    assert torch.allclose(fast, slow, **EXACT)
    fast_gradient, slow_gradient = (torch.autograd.grad((x * weight).sum(), start)[0] for x in (fast, slow))
    assert (fast_gradient - slow_gradient).abs().max() <= 1e-5 * slow_gradient.abs().max()


@pytest.mark.parametrize("side", ["left", "right"])
def test_upstream_positions_are_a_plain_arange_over_prompt_and_queries(built, side):
    config, upstream = built.config, renumbered(built, "upstream")
    batch, start = prompt(config, LENGTHS, side=side), queries(config)
    states = upstream.query_states(batch, start)
    native = built.query_states(batch, start)
    for row in range(len(LENGTHS)):
        expected = transformers_states(built, row_of(batch, row), start)[-start.shape[0] :]
        assert torch.allclose(states[row], expected, **EXACT)
    # Only Qwen2.5-VL numbers an image otherwise, and only if there is one.
    assert torch.allclose(states, native, **EXACT) is (config.family != "qwen2_5_vl")
    words = Prompt(
        input_ids=batch.input_ids.where(batch.input_ids != IMAGE_TOKEN, 9), attention_mask=batch.attention_mask
    )
    assert torch.allclose(upstream.query_states(words, start), built.query_states(words, start), **EXACT)


def test_replies_are_numbered_natively_whatever_queries_are(built):
    upstream = renumbered(built, "upstream")
    batch = prompt(built.config, LENGTHS)
    assert torch.equal(upstream.hidden(batch), built.hidden(batch))
    options = {"max_new_tokens": 4, "stop_ids": ()}
    assert greedy(upstream, batch, **options) == greedy(built, batch, **options)


@pytest.mark.parametrize("side", ["left", "right"])
def test_replies_are_those_of_transformers(built, side):
    batch = prompt(built.config, LENGTHS, side=side)
    replies = greedy(built, batch, max_new_tokens=6, stop_ids=())
    for row in range(len(LENGTHS)):
        one = row_of(batch, row)
        expected = generate(built, one, count=6)
        assert replies[row] == expected


def generate(built: Backbone, one: Prompt, *, count: int) -> list[int]:
    """Greedy decoding without a cache: the whole row again for each token."""
    ids = one.input_ids
    for _ in range(count):
        grown = Prompt(input_ids=ids, attention_mask=torch.ones_like(ids), pixels=one.pixels)
        token = built.logits(built.hidden(grown)[:, -1]).argmax(-1)
        ids = torch.cat([ids, token[:, None]], dim=1)
    return ids[0, one.input_ids.shape[1] :].tolist()


def test_text_generation_of_transformers_agrees(built):
    ids = torch.randint(10, 500, (1, 9), generator=torch.Generator().manual_seed(5))
    expected = transformers_twin(built).generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, use_cache=True
    )[0, 9:]
    batch = Prompt(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert greedy(built, batch, max_new_tokens=6, stop_ids=())[0] == expected.tolist()


def test_rows_stop_independently_and_others_take_their_place(built):
    batch = prompt(built.config, LENGTHS, side="left")
    whole = greedy(built, batch, max_new_tokens=6, stop_ids=())
    every = {stop: [reply.index(stop) if stop in reply else 6 for reply in whole] for stop in sorted({*sum(whole, [])})}
    # One row does stop before the others, and not at once.
    stop, ends = next(item for item in every.items() if any(0 < end < max(item[1]) for end in item[1]))
    for rows in (1, 2, len(LENGTHS)):
        replies = greedy(built, batch, max_new_tokens=6, stop_ids={stop}, rows=rows)
        assert replies == [reply[:end] for reply, end in zip(whole, ends, strict=True)]


def test_initialisation_reaches_every_parameter_of_every_family(built):
    config = nano_config().model_copy(update={"backbone": built.config})
    model = UnifiedModel(config, image_token_id=IMAGE_TOKEN, parts=("backbone",), max_length=24)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    initialize(model, 0)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_positions_and_the_next_position():
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    expected = torch.tensor([[0, 1, 2, 0, 0], [0, 0, 0, 1, 2]])
    assert torch.equal(sequential_positions(mask), expected)
    assert next_position(expected).tolist() == [3, 3]
    images = torch.tensor([[0, 1, 1, 1, 1, 0]])
    assert next_position(multimodal_positions(images, torch.ones_like(images), 2)).tolist() == [4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "takes a vision tower of kind qwen2_5_vl, not none"),
        ({"vision": SIGLIP_VISION}, "takes a vision tower of kind qwen2_5_vl, not siglip2"),
        ({"family": "qwen3", "vision": QWEN_VISION}, "takes a vision tower of kind siglip2, not qwen2_5_vl"),
        ({"vision": QWEN_VISION, "head_width": 16}, "derives head_width"),
        ({"family": "qwen3", "rope_scaling": {"factor": 8}}, "family qwen3 has no rope_scaling"),
        ({"family": "llama", "head_width": 7}, "7 channels of a head are not even"),
    ],
)
def test_a_backbone_that_does_not_exist_is_refused_in_one_line(changes, message):
    with pytest.raises(ValidationError, match=message):
        BackboneConfig(**TEXT, **changes)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3"])
def test_a_row_without_image_tokens_does_not_look_at_its_image(family):
    built = backbone(family)
    batch = prompt(built.config, LENGTHS)
    words = batch.input_ids.clone()
    words[1] = words[1].where(words[1] != IMAGE_TOKEN, 9)
    mixed = Prompt(input_ids=words, attention_mask=batch.attention_mask, pixels=batch.pixels)
    states = built.hidden(mixed)
    blind = Prompt(input_ids=words[1:2], attention_mask=batch.attention_mask[1:2])
    assert torch.allclose(states[1], built.hidden(blind)[0], **EXACT)
    whole = built.hidden(batch)
    assert torch.allclose(states[[0, 2]], whole[[0, 2]], **EXACT)
