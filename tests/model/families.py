"""Backbones of every family at toy size with random parameters, and padded prompts of different lengths."""

import torch
from torch import nn

from benchmarks._transformers import qwen_vision_options, transformers_model
from blip3o.config.backbone import BackboneConfig, Llama3Rope, VisionConfig
from blip3o.model.backbone import Backbone, Prompt
from tests.model.helpers import IMAGE_TOKEN, PAD, randomise

SIDE = 32
QWEN_VISION = VisionConfig(
    image_size=SIDE, patch_size=4, merge=2, width=32, layers=2, heads=2, mlp_width=48, window=16, full_layers=(1,)
)
SIGLIP_VISION = VisionConfig(
    kind="siglip2", image_size=SIDE, patch_size=8, merge=1, width=32, layers=2, heads=2, mlp_width=48
)
TEXT = {"vocab_size": 512, "hidden_size": 64, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_width": 96}
FAMILIES = {
    "qwen2_5_vl": BackboneConfig(**TEXT, norm_eps=1e-6, vision=QWEN_VISION),
    "qwen3": BackboneConfig(**TEXT, family="qwen3", head_width=32, norm_eps=1e-6, tied=False, vision=SIGLIP_VISION),
    "llama": BackboneConfig(
        **TEXT,
        family="llama",
        rope_theta=5e5,
        rope_scaling=Llama3Rope(factor=32, original_max_position_embeddings=16),
    ),
}


def backbone(family: str, **changes) -> Backbone:
    torch.manual_seed(0)  # modules are filled from the global stream
    built = Backbone(FAMILIES[family].model_copy(update=changes), image_token_id=IMAGE_TOKEN)
    nn.init.normal_(built.text.embed_tokens.weight, std=0.02)
    randomise(built, scale=0.8)
    with torch.no_grad():  # else a tied head would only repeat the last token
        built.text.embed_tokens.weight.mul_(0.3)
    return built.eval().requires_grad_(requires_grad=False)


def transformers_twin(built: Backbone):
    """The `transformers` model of the same family, sizes and weights; every name must be the same."""
    twin = transformers_model(built.config, image_token_id=built.image_token_id)
    assert list(twin.state_dict()) == list(built.hf.state_dict())
    twin.load_state_dict(built.hf.state_dict())
    return twin.eval().requires_grad_(requires_grad=False)


def prompt(config: BackboneConfig, lengths, *, side="right", width=24, seed=7) -> Prompt:
    """Rows of these lengths, each with an image after its second token if the backbone reads images."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), width), PAD)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        real = torch.randint(10, 500, (length,), generator=generator)
        real[2 : 2 + config.image_tokens] = IMAGE_TOKEN
        place = slice(0, length) if side == "right" else slice(width - length, width)
        ids[row, place], mask[row, place] = real, 1
    pixels = torch.randint(0, 256, (len(lengths), SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    return Prompt(input_ids=ids, attention_mask=mask, pixels=pixels if config.image_tokens else None)


def row_of(batch: Prompt, row: int) -> Prompt:
    """One row on its own, without padding."""
    real = batch.attention_mask[row].bool()
    return Prompt(
        input_ids=batch.input_ids[row : row + 1, real],
        attention_mask=batch.attention_mask[row : row + 1, real],
        pixels=None if batch.pixels is None else batch.pixels[row : row + 1],
    )


def transformers_tower(vision: VisionConfig, out_width: int) -> nn.Module:
    """Qwen2.5-VL's tower as `transformers` has it, with random weights."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    config = Qwen2_5_VLVisionConfig(**qwen_vision_options(vision, out_width=out_width))
    return Qwen2_5_VisionTransformerPretrainedModel._from_config(config, attn_implementation="sdpa")
