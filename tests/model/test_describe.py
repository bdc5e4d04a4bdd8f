"""Parameter counts of the released presets as golden numbers, and FLOPs against arithmetic."""

import pytest
import torch

from blip3o.config.load import preset_model
from blip3o.model import describe
from blip3o.model.flops import counted as costs

# The published Qwen2.5-VL checkpoints, less the rows of the embedding (and of the head, if it is not tied) by which
# BLIP3-o's 151,668 are fewer than their 151,936 (3B) and 152,064 (7B).
QWEN = {
    "4b": 3_754_622_976 - (151_936 - 151_668) * 2048,
    "8b": 8_292_166_656 - 2 * (152_064 - 151_668) * 3584,
}
WIDTH = {"4b": 2048, "8b": 3584}
# The published SDXL U-Net with 1792 for 2048 channels of condition (keys and values of 10 layers of 640 channels and 60
# of 1280) and 3328 for 2816 numbers in the added embedding.
UNET = 2_567_463_684 - (2048 - 1792) * 2 * (10 * 640 + 60 * 1280) + (3328 - 2816) * 1280
C, MLP, T, LAYERS, TOKENS = 1792, 4864, 1024, 24, 64  # the released DiT


@pytest.fixture(scope="module", params=["4b", "8b"])
def released(request):
    """Name, and the model on the meta device."""
    return request.param, describe.build_on_meta(preset_model(request.param))


def dit_parameters(width):
    """By the shapes of its modules; published: 1.37 billion."""
    norms = 5 * C
    attention = 2 * 3 * C * C + C * C + 2 * 4 * C  # two of q, k, v; one output; LayerNorms of q and k
    block = attention + 3 * C * MLP + (T + 1) * 4 * C + norms + 28
    caption = (width + 1) * C + (C + 1) * C
    times = (256 + 1) * T + (T + 1) * T + 2 * C + (C + 1) * T
    return LAYERS * block + caption + (C + 1) * C + times + (T + 1) * C + (C + 1) * C


def test_parameters_are_the_published_ones(released):
    name, model = released
    found = {weight.name: weight for weight in describe.parameter_counts(model)}
    assert found["backbone"].parameters == QWEN[name]
    assert found["dit"].parameters == dit_parameters(WIDTH[name])
    assert found["dit"].parameters == pytest.approx(1.37e9, rel=0.01)
    assert found["encoder"].parameters == 4_350_208_256  # published: 4.4 billion
    assert found["decoder.unet"].parameters == UNET
    assert found["decoder.vae"].parameters == 83_653_863
    assert found["queries"].parameters == 64 * WIDTH[name]
    assert (found["dit.layers"].count, found["encoder.blocks"].count) == (24, 64)


def test_weights_of_parts_are_the_whole_model(released):
    _, model = released
    rows = list(describe.parameter_counts(model))
    assert sum(row.parameters for row in rows if row.depth == 0) == describe.count_parameters(model)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_shapes_are_the_published_ones(released):
    name, model = released
    pixels = torch.empty(2, 448, 448, 3, dtype=torch.uint8, device="meta")
    assert model.encoder.patch_embed(torch.empty(2, 3, 448, 448, device="meta")).shape == (2, 1024, 1792)
    assert model.config.encoder.grid == 8
    with torch.no_grad():
        assert model.encoder(pixels).shape == (2, 64, 1792)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes["dit.layers.23.feed_forward.linear_1.weight"] == (4864, 1792)
    assert shapes["dit.layers.0.norm1.linear.weight"] == (4 * 1792, 1024)
    assert shapes["dit.layers.0.gate"] == (28,)
    assert shapes["encoder.blocks.63.attn.qkv.weight"] == (5376, 1792)
    assert shapes["encoder.blocks.63.attn.qkv.bias"] == (5376,)
    assert shapes["encoder.pos_embed"] == (1, 1025, 1792)
    assert shapes["decoder.unet.add_embedding.linear_1.weight"] == (1280, 3328)
    assert shapes["backbone.hf.model.language_model.embed_tokens.weight"] == (151668, WIDTH[name])


def test_velocity_costs_the_sum_of_its_matrix_products(released):
    _, model = released
    condition = model.dit.condition(torch.empty(1, 64, model.config.backbone.hidden_size, device="meta"))
    latents = torch.empty(1, 64, 1792, device="meta")
    block = TOKENS * (5 * C * C + 3 * C * MLP) + 4 * C * T + 2 * 2 * TOKENS * TOKENS * C
    ends = 2 * TOKENS * C * C + 256 * T + T * T + T * C
    got = costs.measure(lambda: model.dit(latents, torch.empty(1, device="meta"), condition))
    assert got == 2 * (LAYERS * block + ends)


def test_the_siglip_tower_is_the_published_one_but_for_its_last_block_and_head():
    model = describe.build_on_meta(preset_model("4b-sana"))
    width, mlp = 1152, 4304
    block = 4 * (width + 1) * width + (width + 1) * mlp + (mlp + 1) * width + 4 * width
    assert describe.count_parameters(model.encoder) == 26 * block + (3 * 16 * 16 + 1) * width + 1024 * width
    assert model.latent_shape == (64, 1152)


@pytest.fixture(scope="module")
def small():
    return describe.build_on_meta(preset_model("debug"))


def linear_flops(config, tokens):
    """Of the language model's matrices over tokens, without attention."""
    h, kv = config.hidden_size, config.hidden_size * config.kv_heads // config.heads
    return 2 * tokens * config.layers * (2 * h * h + 2 * h * kv + 3 * h * config.mlp_width)


def attention_flops(config, queries, keys):
    """Of the language model's two products per head, all keys of all queries, as the mask saves nothing here."""
    return 4 * config.hidden_size * config.layers * queries * keys


def prompt_flops(config, tokens):
    """Of a prompt up to the last layer's keys and values: its queries, attention, output and MLP are left out."""
    h = config.hidden_size
    unread = 2 * tokens * h * (2 * h + 3 * config.mlp_width) + attention_flops(config, tokens, tokens) // config.layers
    return linear_flops(config, tokens) + attention_flops(config, tokens, tokens) - unread


def test_generation_counts_every_call(small):
    rows = {row.name: row for row in costs.generation(small, 100)}
    config = small.config.backbone
    assert list(rows) == [
        "prompt of 100 tokens", "64 queries", "condition", "velocity",
        "decoder's condition", "decoder", "latents to pixels",
    ]  # fmt: skip
    assert rows["prompt of 100 tokens"].flops == prompt_flops(config, 100)
    assert rows["64 queries"].flops == linear_flops(config, 64) + attention_flops(config, 64, 164)
    assert rows["velocity"].calls == 2 * 4
    assert rows["decoder"].calls == 2 * 4
    assert rows["velocity"].total == 8 * rows["velocity"].flops


def test_the_frozen_prefix_takes_prompt_once_and_queries_twice(small):
    config = small.config.backbone
    rows = {row.name: row.total for row in costs.training(small, 136)}
    # Backward costs a frozen matrix one product, and attention, whose both factors have gradients, two of its forward.
    assert rows["prompt of 136 tokens"] == prompt_flops(config, 136)
    assert rows["64 queries, with gradient"] == 2 * linear_flops(config, 64) + 3 * attention_flops(config, 64, 200)
    assert costs.full_pass(small, 136).total == 3 * linear_flops(config, 200) + 4 * attention_flops(config, 200, 200)


def test_the_vision_tower_attends_in_windows(small):
    tower, tokens = costs.image_prefill(small)
    config, vision = small.config.backbone, small.config.backbone.vision
    assert tokens.flops == linear_flops(config, 256) + attention_flops(config, 256, 256)
    patches, w = 32 * 32, vision.width
    attention = 4 * patches * w * (3 * 64 + 1024)  # three blocks see 8 x 8 patches (112 pixels), one sees all
    linear = 2 * patches * (vision.layers * (4 * w * w + 3 * w * vision.mlp_width) + 3 * 2 * 14 * 14 * w)
    merger = 2 * 256 * (4 * w * 4 * w + 4 * w * config.hidden_size)
    assert tower.flops == attention + linear + merger


@pytest.mark.parametrize(("solver", "expected"), [("euler", 7), ("heun", 13), ("unipc", 7)])
def test_evaluations_are_those_of_the_solver(solver, expected):
    assert costs.evaluations(solver, 7) == expected
