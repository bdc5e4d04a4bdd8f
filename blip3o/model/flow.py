"""Flow matching as pure functions: noise schedule, interpolation, target, guidance, Euler.

Time runs from noise (σ = 1) to data (σ = 0): x_σ = (1 − σ) x + σ ε, and the model predicts v = ε − x (BLIP3-o; the
paper writes the same with the opposite direction of time). σ in training is on the grid k / 1000, the model's time is
1000 σ. Every draw arrives as an argument: nothing here owns randomness.
"""

from collections.abc import Callable

import torch
from torch import Tensor

NUM_TRAIN_STEPS = 1000


def training_sigma(uniform_B: Tensor) -> Tensor:
    """Uniform draws in [0, 1) → σ = 1 − floor(1000 u) / 1000, in {0.001 … 1.0} (uniform density, shift 1)."""
    return 1 - torch.floor(uniform_B * NUM_TRAIN_STEPS) / NUM_TRAIN_STEPS


def _column(sigma_B: Tensor, like: Tensor) -> Tensor:
    return sigma_B.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def interpolate(data: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
    """(1 − σ) data + σ noise, σ per sample; data and noise [B, …]."""
    sigma = _column(sigma_B, data)
    return (1 - sigma) * data + sigma * noise


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """The target of the velocity, ε − x."""
    return noise - data


def sampling_sigmas(steps: int) -> Tensor:
    """The σ of each Euler step and a final zero: linspace(1, 1 / steps, steps) then 0, [steps + 1] fp32."""
    return torch.cat([torch.linspace(1, 1 / steps, steps), torch.zeros(1)])


def guide(conditional: Tensor, null: Tensor, guidance: Tensor | float) -> Tensor:
    """Classifier-free guidance: v_null + g (v_cond − v_null). A tensor g is per sample, [B]."""
    if isinstance(guidance, Tensor):
        guidance = _column(guidance, conditional)
    return null + guidance * (conditional - null)


def euler_step(latents: Tensor, velocity: Tensor, sigma_B: Tensor, next_sigma_B: Tensor) -> Tensor:
    """One explicit Euler step: z + (σ' − σ) v, σ per sample."""
    return latents + _column(next_sigma_B - sigma_B, latents) * velocity


def integrate(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Integrates a velocity field from noise to data with exactly `steps` evaluations. `velocity(z, sigma_B)`."""
    sigmas = sampling_sigmas(steps).to(noise.device)
    latents = noise
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        sigma_B = sigma.expand(noise.shape[0])
        latents = euler_step(latents, velocity(latents, sigma_B), sigma_B, following.expand(noise.shape[0]))
    return latents
