"""Modules with empty weights: shapes and buffers but no memory, ties are kept, and setting weights copies none."""

import torch

from blip3o.model.empty_weights import init_empty_weights, set_parameter, tied_names
from tests.model.families import FAMILIES, backbone, prompt
from tests.model.helpers import IMAGE_TOKEN


def test_a_module_filled_one_by_one_is_the_module():
    for family in FAMILIES:
        expected = backbone(family)
        with init_empty_weights():
            built = type(expected)(expected.config, image_token_id=IMAGE_TOKEN).eval()
        assert all(parameter.is_meta for parameter in built.parameters())
        assert not any(buffer.is_meta for buffer in built.buffers())
        names = tied_names(built)
        assert any(len(group) > 1 for group in names.values()) is expected.config.tied
        weights = {name: parameter.detach() for name, parameter in expected.named_parameters()}
        assert names.keys() == weights.keys()
        for name, group in names.items():
            set_parameter(built, group, weights[name])
        assert all(p.data_ptr() == weights[name].data_ptr() for name, p in built.named_parameters())
        batch = prompt(expected.config, (12, 20))
        assert torch.equal(built.logits(built.hidden(batch)), expected.logits(expected.hidden(batch)))


def test_modules_built_afterwards_have_memory():
    with init_empty_weights():
        hollow = torch.nn.Linear(2, 2)
    assert hollow.weight.is_meta
    assert not torch.nn.Linear(2, 2).weight.is_meta
