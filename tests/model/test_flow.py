"""The flow's formulas at their limits, against diffusers' scheduler, and on a field with a known solution."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from blip3o.config.sampler import FlowConfig
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


@pytest.mark.parametrize("steps", [10, 20, 25, 30, 50, 100])
def test_truncated_times_are_those_of_numpy_grid(steps):
    # Upstream passes numpy's linspace in fp32; a value one ulp below an integer would be truncated to the previous one.
    expected = (np.linspace(1, 1 / steps, steps).astype(np.float32) * np.float32(1000)).astype(int)
    assert (1000 * flow.sampling_sigmas(steps)[:-1]).trunc().int().tolist() == expected.tolist()


def test_training_sigmas_are_the_published_table():
    uniform = (torch.arange(1000) + 0.5) / 1000
    table = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0).sigmas
    assert torch.equal(flow.training_sigma(uniform), table)


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


def test_logit_normal_draws_have_a_normal_logit_of_sigma():
    uniform = (torch.arange(4000) + 0.5) / 4000
    sigma = 1 - flow.logit_normal(uniform, mean=0.4, std=1.3)
    logits = torch.logit(sigma.double())
    # Evenly spaced quantiles of the normal: mean exact, deviation short of its tails by under 0.1 %.
    assert logits.mean().item() == pytest.approx(0.4, abs=1e-3)
    assert logits.std().item() == pytest.approx(1.3, rel=2e-3)
    assert (sigma.diff() <= 0).all()  # as for uniform density, a larger draw is less noise


@pytest.mark.parametrize("uniform", [0.0, 1e-9, 0.5, 1 - 2**-24])
def test_logit_normal_levels_stay_on_the_training_grid(uniform):
    config = FlowConfig(density="logit_normal", logit_mean=-3, logit_std=8)
    sigma = flow.noise_level(torch.tensor([uniform]), config, shift=1.0).item()
    assert 0.001 - 1e-7 <= sigma <= 1
    assert sigma * 1000 == pytest.approx(round(sigma * 1000), abs=1e-3)


def test_the_default_levels_are_the_uniform_ones_to_the_bit():
    uniform = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flow.noise_level(uniform, FlowConfig(), shift=1.0), flow.training_sigma(uniform))


@given(st.floats(0, 1, width=32), st.floats(0.125, 8, width=32))
def test_a_shift_keeps_the_ends_and_divides_the_odds_of_data(sigma, shift):
    shifted = flow.shift_sigma(torch.tensor(sigma, dtype=torch.float64), shift).item()
    if sigma in (0, 1):
        assert shifted == sigma
    else:
        # σ / (1 − σ) is multiplied by s, so the signal-to-noise ratio is divided by s².
        assert shifted * (1 - sigma) == pytest.approx(shift * sigma * (1 - shifted), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_weighs_the_error_of_the_predicted_data(gamma):
    generator = torch.Generator().manual_seed(3)
    sigma = torch.linspace(0.01, 1, 25, dtype=torch.float64)
    data, noise, predicted = torch.randn(3, 25, 6, dtype=torch.float64, generator=generator)
    z = flow.interpolate(data, noise, sigma)
    data_error = (z - sigma[:, None] * predicted - data).square().sum(1)
    snr = ((1 - sigma) / sigma) ** 2
    velocity_error = (predicted - flow.velocity_target(data, noise)).square().sum(1)
    ours = flow.min_snr_weight(sigma, gamma) * velocity_error
    assert torch.allclose(ours, snr.clamp(max=gamma) * data_error, rtol=1e-9)
