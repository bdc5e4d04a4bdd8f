"""Flow matching as pure functions: noise levels, interpolation, target, weights, guidance, and the ODE solvers.

Time runs from noise (σ = 1) to data (σ = 0): x_σ = (1 − σ) x + σ ε, and the model predicts v = ε − x (BLIP3-o; the
paper writes the same with the opposite direction of time). σ in training is on the grid k / 1000, the model's time is
1000 σ. Every random draw is an argument: nothing here owns a generator.

Solvers integrate dz / dσ = v(z, σ) over the same levels. One evaluation is one call of the velocity on the whole batch,
which is one model evaluation per guidance branch:

| solver | order | evaluations in N steps | |
|---|---|---|---|
| euler | 1 | N | upstream's; stateless, so the only one for rows of a batch that are at different steps |
| heun | 2 | 2 N − 1 | trapezoid with an Euler predictor; the last step, which ends at σ = 0, is an Euler step |
| unipc | 2 | N | diffusers' UniPC (arXiv 2302.04867), multistep with a corrector, on the data prediction |
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from blip3o.config.sampler import FlowConfig, SamplerConfig, Solver

NUM_TRAIN_STEPS = 1000
_LARGEST_UNIFORM = 1 - 2**-24  # of torch.rand in fp32

Velocity = Callable[[Tensor, Tensor], Tensor]  # (latents [B, …], σ [B]) → velocity [B, …]


def training_sigma(uniform_B: Tensor) -> Tensor:
    """Uniform draws in [0, 1) → σ = 1 − floor(1000 u) / 1000, in {0.001 … 1.0} (uniform density, shift 1)."""
    return (NUM_TRAIN_STEPS - torch.floor(uniform_B * NUM_TRAIN_STEPS)) / NUM_TRAIN_STEPS


def logit_normal(uniform_B: Tensor, *, mean: float, std: float) -> Tensor:
    """Uniform draws → draws in [0, 1) whose complement, σ, has a normal logit: logit σ ~ N(mean, std²).

    Stable Diffusion 3 (arXiv 2403.03206, section 3.1). Uses the inverse of the normal CDF, so that one uniform draw
    gives one σ.
    """
    logits = mean - std * torch.special.ndtri(uniform_B.double())
    return (1 - torch.sigmoid(logits)).to(uniform_B.dtype).clamp(max=_LARGEST_UNIFORM)


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """s σ / (1 + (s − 1) σ) (arXiv 2403.03206, equation 23): keeps 0 and 1, raises values in between for s > 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def noise_level(uniform_B: Tensor, config: FlowConfig, *, shift: float) -> Tensor:
    """Uniform draws [B] → training σ [B] under the density and shift configured."""
    if config.density == "logit_normal":
        uniform_B = logit_normal(uniform_B, mean=config.logit_mean, std=config.logit_std)
    return shift_sigma(training_sigma(uniform_B), shift)


def min_snr_weight(sigma_B: Tensor, gamma: float) -> Tensor:
    """min-SNR-γ (arXiv 2303.09556) as a weight of the velocity's squared error, min((1 − σ)², γ σ²), [B].

    A velocity predicts the data x̂ = z − σ v, so ‖x̂ − x‖² = σ² ‖v − v*‖². The paper weights the error of x̂ by
    min(SNR, γ), where SNR = ((1 − σ) / σ)².
    """
    return torch.minimum((1 - sigma_B).square(), gamma * sigma_B.square())


def _column(sigma_B: Tensor, like: Tensor) -> Tensor:
    return sigma_B.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def interpolate(data: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
    """(1 − σ) data + σ noise, σ per sample; data and noise [B, …]."""
    sigma = _column(sigma_B, data)
    return (1 - sigma) * data + sigma * noise


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """The target of the velocity, ε − x."""
    return noise - data


def sampling_sigmas(steps: int, shift: float = 1.0) -> Tensor:
    """σ before each step and a final zero: linspace(1, 1 / steps, steps), shifted, then 0, [steps + 1] fp32."""
    return torch.cat(
        [shift_sigma(torch.linspace(1, 1 / steps, steps, dtype=torch.float64).float(), shift), torch.zeros(1)]
    )


def guide(conditional: Tensor, null: Tensor, guidance: Tensor | float) -> Tensor:
    """Classifier-free guidance: v_null + g (v_cond − v_null). A tensor g is per sample, [B]."""
    if isinstance(guidance, Tensor):
        guidance = _column(guidance, conditional)
    return null + guidance * (conditional - null)


def euler_step(latents: Tensor, velocity: Tensor, sigma_B: Tensor, next_sigma_B: Tensor) -> Tensor:
    """One explicit Euler step: z + (σ' − σ) v, σ per sample."""
    return latents + _column(next_sigma_B - sigma_B, latents) * velocity


def integrate(velocity: Velocity, noise: Tensor, steps: int, *, solver: Solver = "euler", shift: float = 1.0) -> Tensor:
    """Integrates a velocity field from noise [B, …] to data in `steps` solver steps (evaluations: see the module)."""
    return _SOLVERS[solver](velocity, noise, sampling_sigmas(steps, shift).to(noise.device))


def evaluations(sampler: SamplerConfig) -> int:
    """Evaluations per guidance branch when sampling, counted by running the solver on a single number."""
    seen: list[Tensor] = []

    def velocity(latents: Tensor, sigma_B: Tensor) -> Tensor:
        seen.append(sigma_B)
        return latents

    integrate(velocity, torch.ones(1, 1), sampler.num_inference_steps, solver=sampler.solver)
    return len(seen)


def _euler(velocity: Velocity, latents: Tensor, sigmas: Tensor) -> Tensor:
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        sigma_B = sigma.expand(latents.shape[0])
        latents = euler_step(latents, velocity(latents, sigma_B), sigma_B, following.expand(latents.shape[0]))
    return latents


def _heun(velocity: Velocity, latents: Tensor, sigmas: Tensor) -> Tensor:
    last = len(sigmas) - 2
    for step, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        sigma_B, next_B = sigma.expand(latents.shape[0]), following.expand(latents.shape[0])
        slope = velocity(latents, sigma_B)
        if step < last:  # σ = 0 is never trained
            slope = (slope + velocity(euler_step(latents, slope, sigma_B, next_B), next_B)) / 2
        latents = euler_step(latents, slope, sigma_B, next_B)
    return latents


def _unipc(velocity: Velocity, latents: Tensor, sigmas: Tensor) -> Tensor:
    scheduler = _unipc_scheduler(sigmas)
    # The scheduler works with the logarithm of the signal, so its first level is 1e-6 below one.
    for sigma, time in zip(scheduler.sigmas[:-1].to(latents.device), scheduler.timesteps, strict=True):
        output = velocity(latents, sigma.expand(latents.shape[0]))
        latents = scheduler.step(output, time, latents, return_dict=False)[0]
    return latents


def _unipc_scheduler(sigmas: Tensor) -> Any:  # noqa: ANN401 - a diffusers scheduler
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        num_train_timesteps=NUM_TRAIN_STEPS, prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2
    )
    scheduler.set_timesteps(sigmas=sigmas[:-1].double().cpu().numpy())
    scheduler.set_begin_index(0)  # else it finds its index by a time truncated to an integer
    return scheduler


_SOLVERS: dict[Solver, Callable[[Velocity, Tensor, Tensor], Tensor]] = {
    "euler": _euler,
    "heun": _heun,
    "unipc": _unipc,
}
