"""The regression of clip_mse: a linear map, behind the interface of the DiT."""

import pytest
import torch

from blip3o.config.model import ModelConfig
from blip3o.model.flow import integrate
from blip3o.model.regression import RegressionHead
from tests.model.variants import model_config


@pytest.fixture
def head():
    torch.manual_seed(0)
    return RegressionHead(6, 5)


def test_the_prediction_is_linear_in_the_states(head):
    first, second = torch.randn(2, 3, 4, 6)
    predicted = [head.condition(states).prediction for states in (first, second, 2 * first - second)]
    assert torch.allclose(predicted[2], 2 * predicted[0] - predicted[1], atol=1e-5)
    assert torch.allclose(predicted[0], torch.einsum("bnh,fh->bnf", first, head.project.weight), atol=1e-6)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_any_number_of_steps_ends_at_the_prediction(head, solver, steps):
    condition = head.condition(torch.randn(3, 4, 6))
    noise = torch.randn(3, 4, 5)
    reached = integrate(lambda z, sigma: head(z, 1000 * sigma, condition), noise, steps, solver=solver)
    assert torch.allclose(reached, condition.prediction, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": {"num_inference_steps": 2, "guidance_scale": 1, "condition_dropout": 0}}, "predicts in one pass"),
        ({"num_queries": 64}, "num_queries 64 is not 4"),
    ],
)
def test_options_that_a_regression_ignores_are_rejected(changes, message):
    values = model_config("clip_mse").model_dump() | changes
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate(values)
