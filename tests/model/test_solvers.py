"""ODE solvers on a flow whose solution is known, against diffusers' schedulers, and how often they ask the model.

The flow is that of Gaussian data N(μ, s²): z_σ = (1 − σ) μ + sqrt((1 − σ)² s² + σ²) ε solves it exactly, for every ε.
"""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from blip3o.model import flow
from blip3o.model.flow import integrate, sampling_sigmas

MEAN, DEVIATION = 0.7, 0.4
# Evaluations in N steps, and the order of convergence.
SOLVERS = {"euler": (lambda n: n, 1), "heun": (lambda n: 2 * n - 1, 2), "unipc": (lambda n: n, 2)}


def gaussian_velocity(z, sigma_B):
    sigma = sigma_B.to(z.dtype).view(-1, *[1] * (z.dim() - 1))
    variance = (1 - sigma) ** 2 * DEVIATION**2 + sigma**2
    slope = (sigma - (1 - sigma) * DEVIATION**2) / variance
    return -MEAN + slope * (z - (1 - sigma) * MEAN)


def error(solver, steps, shift=1.0):
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[None]
    reached = integrate(gaussian_velocity, noise, steps, solver=solver, shift=shift)
    return (reached - (MEAN + DEVIATION * noise)).abs().max().item()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_converges_with_its_order(solver):
    # Measured between 64 and 256 steps: 0.99, 2.02, 2.02. With fewer, UniPC's error changes sign on the way.
    slope = math.log(error(solver, 64) / error(solver, 256), 4)
    assert slope == pytest.approx(SOLVERS[solver][1], abs=0.1)


@pytest.mark.parametrize("solver", ["heun", "unipc"])
def test_second_order_is_nearer_than_euler_for_the_same_number_of_evaluations(solver):
    steps = 16 if solver == "unipc" else 8
    assert error(solver, steps) < error("euler", 16) / 2


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 5, 30])
def test_evaluations_are_counted(solver, steps):
    levels = []

    def velocity(z, sigma_B):
        levels.append(sigma_B[0].item())
        return torch.zeros_like(z)

    integrate(velocity, torch.zeros(2, 3, 4), steps, solver=solver)
    assert len(levels) == SOLVERS[solver][0](steps)
    assert levels[0] == pytest.approx(1, abs=2e-6)
    assert min(levels) == pytest.approx(1 / steps, abs=2e-6)  # never at 0, where nothing was trained


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shift", [1.0, 50.0])  # at 50 several levels lie within a thousandth of 1
def test_a_straight_flow_ends_at_its_data(solver, shift):
    data, noise = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    reached = integrate(lambda z, sigma: noise - data, noise, 30, solver=solver, shift=shift)
    # UniPC's first level is 1 - 1e-6, and it divides by it.
    assert torch.allclose(reached, data, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_row_is_its_own_in_any_order_of_a_batch(solver):
    noise = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([2, 0, 3, 1])
    together = integrate(gaussian_velocity, noise, 7, solver=solver)
    assert torch.equal(integrate(gaussian_velocity, noise[order], 7, solver=solver), together[order])


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shifted_levels_are_those_of_the_published_scheduler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 9, 9).tolist())
    assert torch.allclose(sampling_sigmas(9, shift), scheduler.sigmas, atol=1e-6)


def test_heun_agrees_with_the_published_scheduler(monkeypatch):
    """Diffusers' Heun fixes its levels, from 1 to 0.001 and then 0: ours is given the same."""
    steps = 6
    monkeypatch.setattr(
        flow, "sampling_sigmas", lambda *_: torch.cat([torch.linspace(1, 0.001, steps), torch.zeros(1)])
    )
    scheduler = FlowMatchHeunDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    scheduler.set_timesteps(steps)
    noise = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))

    def field(z, sigma_B):
        return torch.sin(3 * z) + sigma_B.view(-1, 1, 1)

    expected = noise
    for time in scheduler.timesteps:
        velocity = field(expected, (time / 1000).expand(2))
        expected = scheduler.step(velocity, time, expected, return_dict=False)[0]
    assert torch.allclose(integrate(field, noise, steps, solver="heun"), expected, atol=1e-5)
