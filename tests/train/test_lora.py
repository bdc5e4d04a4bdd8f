"""LoRA adapters: no effect at first, the only trained part, and merged into the result with equal outputs."""

import pytest
import torch

from blip3o.config.training import LoraConfig
from blip3o.errors import ConfigError
from blip3o.model.unified import initialize
from blip3o.train.deepspeed.gather import trainable_parameters
from blip3o.train.lora import adapted_layers, add_adapters, base_weights, merge_adapters
from blip3o.train.objectives import build_stage_module
from blip3o.train.stages import freeze, stage_of
from tests.model.helpers import IMAGE_TOKEN, PAD, randomise
from tests.recipes import recipe
from tests.train.test_objectives import batch, stage_module

LORA = {"rank": 2, "alpha": 6.0}
ATTENTION = 2 * 4  # layers of the nano backbone, projections in each


def adapted(stage):
    made = recipe(stage={"name": stage, "lora": LORA})
    module = build_stage_module(made, image_token_id=IMAGE_TOKEN, pad_id=PAD)
    initialize(module.model, 0)
    randomise(module)
    before = {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}
    add_adapters(module.model, made.stage.lora, 0)
    freeze(module.model, stage_of(made))
    return module, before


def test_new_adapters_change_nothing():
    module, _ = adapted("understand")
    with torch.no_grad():
        assert torch.equal(module(batch("understand"))["text"], stage_module("understand")(batch("understand"))["text"])


@pytest.mark.parametrize(("stage", "others"), [("understand", set()), ("joint", {"queries", "dit"})])
def test_adapters_are_trained_and_the_backbone_is_not(stage, others):
    module, _ = adapted(stage)
    sum(module(batch(stage)).values()).backward()
    names = set(trainable_parameters(module.model))
    assert {name for name, p in module.model.named_parameters() if p.grad is not None} == names
    adapters = {name for name in names if name.startswith("backbone.")}
    assert len(adapters) == 2 * ATTENTION
    assert {name.split(".")[0] for name in names - adapters} == others


def test_a_result_has_plain_names_and_the_same_outputs_as_the_adapters():
    module, before = adapted("understand")
    randomise(module, seed=1)  # weights and adapters alike
    result = merge_adapters(trainable_parameters(module.model), base_weights(module.model), LoraConfig(**LORA))
    assert set(result) == {f"{name}.weight" for name in adapted_layers(stage_module("understand").model, LoraConfig())}
    plain = stage_module("understand")
    names = {name.replace(".base_layer.", "."): p for name, p in module.model.state_dict().items()}
    # Not strict: the head is the embedding's own weight.
    plain.model.load_state_dict({name: names[name] for name in before} | result, strict=False)
    with torch.no_grad():
        expected, found = module(batch("understand"))["text"], plain(batch("understand"))["text"]
    # fp32, in another order: (W + BA) x for Wx + B(Ax).
    assert torch.allclose(found, expected, rtol=1e-5)
    moved = module.model.backbone.hf.model.language_model.layers[0].self_attn.q_proj
    weight = result["backbone.hf.model.language_model.layers.0.self_attn.q_proj.weight"]
    assert torch.allclose(weight - moved.base_layer.weight, moved.get_delta_weight("default"), atol=1e-6)


def test_weights_trained_without_adapters_are_unchanged():
    tensors = {"queries": torch.zeros(2)}
    assert merge_adapters(tensors, {}, None) == tensors


def test_a_pattern_that_matches_no_layer_is_an_error():
    with pytest.raises(ConfigError, match=r"stage.lora.match '\*.q_porj' matches no linear layer .*backbone.hf"):
        adapted_layers(stage_module("understand").model, LoraConfig(match=("*.q_porj",)))


def test_a_stage_without_backbone_has_no_adapters():
    with pytest.raises(ConfigError, match="stage.lora adapts the backbone, which stage 'decoder' does not have"):
        recipe(stage={"name": "decoder", "lora": LORA})
