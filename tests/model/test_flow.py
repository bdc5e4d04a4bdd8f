"""The flow's formulas at their ends, against diffusers' scheduler, and on a field whose solution is known."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from blip3o.model import flow


def test_sigma_zero_is_data_and_one_is_noise():
    data, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(flow.interpolate(data, noise, torch.zeros(2)), data)
    assert torch.equal(flow.interpolate(data, noise, torch.ones(2)), noise)


@given(st.floats(0, 1, exclude_max=True, width=32))
def test_training_sigma_lies_on_the_grid_of_thousandths(u):
    sigma = flow.training_sigma(torch.tensor([u])).item()
    k = round((1 - sigma) * 1000)
    assert 0 <= k <= 999
    assert sigma == pytest.approx(1 - k / 1000, abs=1e-7)
    assert k - 1e-3 <= u * 1000 < k + 1 + 1e-3  # the product is rounded to fp32


def test_training_sigma_of_first_and_last_draw():
    assert flow.training_sigma(torch.tensor([0.0, 0.9999])).tolist() == pytest.approx([1.0, 0.001], abs=1e-7)


@pytest.mark.parametrize("steps", [1, 4, 30])
def test_sampling_sigmas_are_those_of_the_published_scheduler(steps):
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    assert torch.allclose(flow.sampling_sigmas(steps), scheduler.sigmas, atol=1e-7)


def test_euler_agrees_with_the_published_scheduler():
    steps = 7
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    noise = torch.randn(2, 5, 3)

    def field(z, sigma):
        return torch.sin(3 * z) + sigma.view(-1, 1, 1)

    expected = noise
    for index, time in enumerate(scheduler.timesteps):
        velocity = field(expected, scheduler.sigmas[index].expand(2))
        expected = scheduler.step(velocity, time, expected).prev_sample
    assert torch.allclose(flow.integrate(field, noise, steps), expected, atol=1e-6)


def test_a_straight_field_is_integrated_exactly_to_the_data():
    data, noise = torch.randn(2, 4), torch.randn(2, 4)
    velocity = flow.velocity_target(data, noise)
    reached = flow.integrate(lambda z, sigma: velocity, noise, 5)
    assert torch.allclose(reached, data, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 30])
def test_n_steps_are_n_evaluations(steps):
    calls = []
    flow.integrate(lambda z, sigma: calls.append(float(sigma[0])) or torch.zeros_like(z), torch.zeros(1, 2), steps)
    assert len(calls) == steps
    assert calls[0] == 1.0
    assert calls == sorted(calls, reverse=True)


def test_guidance_one_is_the_conditional_branch_and_zero_the_null():
    conditional, null = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    assert torch.allclose(flow.guide(conditional, null, 1.0), conditional, atol=1e-12)
    assert torch.equal(flow.guide(conditional, null, 0.0), null)
    per_sample = flow.guide(conditional, null, torch.tensor([0.0, 1.0, 3.0]).double())
    assert torch.allclose(per_sample[2], null[2] + 3 * (conditional[2] - null[2]))
