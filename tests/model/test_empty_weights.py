"""Modules with empty weights: shapes and buffers but no memory, ties are kept, and setting weights copies none."""

import subprocess
import sys

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


BUILD = """
import sys
import torch
from blip3o.model.empty_weights import init_empty_weights
with init_empty_weights(), torch.device("meta"):
    torch.nn.Embedding(3, 4), torch.nn.Linear(4, 5)
assert "torch._dynamo" not in sys.modules
torch.nn.Embedding(3, 4, device="meta")
assert "torch._dynamo" in sys.modules
"""


def test_building_does_not_import_torchs_compiler_as_torch_alone_does():
    subprocess.run([sys.executable, "-c", BUILD], check=True)


def test_tensors_with_memory_are_drawn_as_ever():
    torch.manual_seed(5)
    expected = torch.nn.Linear(3, 4).weight
    torch.manual_seed(5)
    with init_empty_weights():
        drawn = torch.nn.init.kaiming_uniform_(torch.empty(4, 3), a=5**0.5)
    assert torch.equal(drawn, expected)
