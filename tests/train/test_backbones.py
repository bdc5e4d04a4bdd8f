"""Every backbone family trains, is exported, generates and chats: only its name in the recipe changes."""

import numpy as np
import pytest
import torch
from PIL import Image

import blip3o
from blip3o.errors import ConfigError, RequestError
from blip3o.model.unified import initialize
from blip3o.train.objectives import build_stage_module
from blip3o.train.stages import freeze, stage_of
from tests.bundles import write_nano_bundle
from tests.model.helpers import IMAGE_TOKEN, PAD, randomise
from tests.recipes import recipe
from tests.train.test_objectives import batch

SIGLIP = {
    "kind": "siglip2",
    "image_size": 32,
    "patch_size": 16,
    "merge": 1,
    "width": 16,
    "layers": 1,
    "heads": 2,
    "mlp_width": 32,
}
FAMILIES = {
    "qwen3": {"family": "qwen3", "head_width": 8, "tied": False, "vision": SIGLIP},
    "llama": {"family": "llama", "rope_scaling": {"factor": 8, "original_max_position_embeddings": 64}, "vision": None},
}
# An untied head and a separate tower add weights to those of the nano preset's backbone.
OWN = {"qwen3": {"backbone.hf.lm_head.weight", "backbone.vision.mm_projector.0.bias"}, "llama": set()}


def recipe_of(family, stage):
    return recipe(model={"backbone": FAMILIES[family]}, stage={"name": stage})


@pytest.mark.parametrize(("family", "stage"), [("qwen3", "generate"), ("qwen3", "understand"), ("llama", "generate")])
def test_a_stage_trains_exactly_the_parts_that_it_names(family, stage):
    module = build_stage_module(recipe_of(family, stage), image_token_id=IMAGE_TOKEN, pad_id=PAD)
    initialize(module.model, 0)
    randomise(module)
    trainable = set(freeze(module.model, stage_of(recipe_of(family, stage))))
    sums = module(batch(stage))
    sum(sums.values()).backward()
    assert all(torch.isfinite(value) for value in sums.values())
    moved = {name for name, p in module.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == trainable
    assert stage != "understand" or trainable > OWN[family]


def test_a_backbone_without_vision_cannot_train_on_images():
    with pytest.raises(ConfigError, match="stage 'understand' shows images, and model.backbone has no vision tower"):
        recipe_of("llama", "understand")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bundle_generates_images_and_chats(family, tmp_path):
    model = recipe_of(family, "generate").model
    write_nano_bundle(str(tmp_path), model=model)
    pipeline = blip3o.load(str(tmp_path))
    assert pipeline.model.config == model
    prompts = ["a red circle", "a blue square"]
    images = pipeline.generate(prompts, seed=[1, 2])
    alone = pipeline.generate(prompts[1:], seed=[2])
    assert np.array_equal(np.asarray(images[1]), np.asarray(alone[0]))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
    question = "What colour is it?"
    assert isinstance(pipeline.chat(question), str)
    if model.backbone.vision is None:
        with pytest.raises(RequestError, match="reads only text"):
            pipeline.chat(question, image=picture)
    else:
        assert pipeline.chat(question, image=picture) != pipeline.chat(question)
