"""Muon: its formula, which parameters it updates, and its state."""

import copy

import pytest
import torch
from torch import nn

from blip3o.config.training import OptimConfig
from blip3o.errors import ConfigError
from blip3o.train.muon import build_optimizer, orthogonalize
from tests.recipes import recipe
from tests.train.engines import nearly_orthogonal


def optim(**changes):
    values = {"steps": 4, "lr": 0.01, "micro_batch_size": 1, "micro_batches": 1, "weight_decay": 0.1}
    return OptimConfig(**{**values, "muon": ["layers.*"], **changes})


def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"layers": nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 6)), "head": nn.Linear(6, 4)})


def train(module, optimizer, steps, first=0):
    for step in range(first, first + steps):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        module["head"](module["layers"](x)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("shape", [(4, 4), (3, 8), (8, 3), (1, 5)])
def test_singular_values_end_near_one(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalize(matrices)
    for matrix, one in zip(matrices, found, strict=True):
        # Measured: up to 2e-6. The iteration in fp32 against the polynomial of the singular values in fp64.
        assert torch.allclose(one.double(), nearly_orthogonal(matrix), atol=2e-5)
    assert 0.6 < torch.linalg.svdvals(found).min() and torch.linalg.svdvals(found).max() < 1.3


def test_a_matrix_of_zeros_stays_zero():
    assert not orthogonalize(torch.zeros(1, 3, 4)).any()


def test_only_matrices_that_match_are_updated_by_muon():
    module = model()
    names = dict(module.named_parameters())
    before = {name: p.detach().clone() for name, p in names.items()}
    optimizer = build_optimizer(optim(), names, lr=0.01)
    train(module, optimizer, 1)
    other = model()
    train(other, torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1, fused=True), 1)
    for name, parameter in other.named_parameters():
        is_matrix = name in ("layers.0.weight", "layers.1.weight")
        assert torch.equal(names[name], parameter) != is_matrix, name
        if is_matrix:
            step = before[name] * (1 - 0.01 * 0.1) - names[name]
            # The gradient passes through four outputs, so that its rank is 4.
            values = torch.linalg.svdvals(step)[:4] / (0.01 * 0.2 * max(step.shape) ** 0.5)
            assert 0.6 < values.min() and values.max() < 1.3, name


def test_steps_follow_the_formula():
    draws = torch.randn(5, 6, 9, generator=torch.Generator().manual_seed(2))
    weight = nn.Parameter(draws[0].clone())
    built = build_optimizer(optim(muon=["w"]), {"w": weight}, lr=0.01)
    expected, momentum = draws[0].double(), torch.zeros(6, 9, dtype=torch.float64)
    for gradient in draws[1:]:
        weight.grad = gradient.clone()
        built.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        update = nearly_orthogonal(0.05 * gradient + 0.95 * momentum)
        expected = (1 - 0.01 * 0.1) * expected - 0.01 * 0.2 * 3 * update
    # Measured: 3e-7; leaving out the look ahead is 1e-3.
    assert torch.allclose(weight.double(), expected, rtol=0, atol=3e-6)


def test_a_loaded_state_goes_on_to_the_bit():
    module = model()
    optimizer = build_optimizer(optim(), dict(module.named_parameters()), lr=0.01)
    train(module, optimizer, 2)
    resumed = copy.deepcopy(module)
    other = build_optimizer(optim(), dict(resumed.named_parameters()), lr=0.01)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(module, optimizer, 2, first=2)
    train(resumed, other, 2, first=2)
    for one, two in zip(module.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def test_groups_keep_their_rate_and_decay():
    groups = [{"match": "layers.0.*", "lr": 0.002, "weight_decay": 0.5}]
    built = build_optimizer(optim(groups=groups), dict(model().named_parameters()), lr=0.01).param_groups
    found = [
        (g["matrices"], g["weight_decay"], g.get("lr_scale"), [tuple(p.shape) for p in g["params"]]) for g in built
    ]
    assert found == [
        (True, 0.5, pytest.approx(0.2), [(10, 6)]),
        (False, 0.5, pytest.approx(0.2), [(10,)]),
        (True, 0.1, None, [(6, 10)]),
        (False, 0.1, None, [(6,), (4, 6), (4,)]),
    ]


def test_a_pattern_without_a_matrix_is_refused():
    with pytest.raises(ConfigError, match=r"optim\.muon: 'layers\.\*\.bias' matches no matrix among the 6 .*layers"):
        build_optimizer(optim(muon=["layers.*.bias"]), dict(model().named_parameters()), lr=0.01)


def test_muon_needs_whole_matrices():
    with pytest.raises(ConfigError, match=r"parallel\.zero_stage is 1: set parallel\.zero_stage=0"):
        recipe(
            optim={"steps": 2, "lr": 1e-3, "micro_batch_size": 4, "micro_batches": 2, "muon": ["dit.*"]},
            parallel={"zero_stage": 1},
        )


def test_a_recipe_without_it_is_the_run_that_it_was():
    assert "muon" not in recipe().model_dump()["optim"]
