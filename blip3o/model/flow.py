"""Flow matching as pure functions: noise levels, interpolation, target, weights, guidance, and the ODE solvers.

Time runs from noise (σ = 1) to data (σ = 0): x_σ = (1 − σ) x + σ ε, and the model predicts v = ε − x (BLIP3-o; the
paper writes the same with the opposite direction of time). σ in training is on the grid k / 1000, the model's time is
1000 σ. Every random draw is an argument: nothing here owns a generator.

Solvers integrate dz / dσ = v(z, σ) over the same levels. One evaluation is one call of the velocity on the whole batch,
which is one model evaluation per guidance branch:

| solver | order | evaluations in N steps | |
|---|---|---|---|
| euler | 1 | N | upstream's |
| heun | 2 | 2 N − 1 | trapezoid with an Euler predictor; the last step, which ends at σ = 0, is an Euler step |
| unipc | 2 | N | diffusers' UniPC (arXiv 2302.04867), multistep with a corrector, on the data prediction |
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from blip3o.config.sampler import FlowConfig, Solver

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


class Trajectory(ABC):
    """The way of one sample, or of a batch at the same step, from noise to data: a solver with its memory.

    `point` is where the next evaluation is wanted and `level` its noise level σ (or its time), a scalar; `advance`
    takes the velocity there. At the end, `point` is the data. So samples at different steps can share an evaluation.
    """

    point: Tensor
    level: Tensor
    done: bool

    def __init__(self, noise: Tensor, sigmas: Tensor) -> None:
        """`noise` has any shape; `sigmas` [steps + 1] are those of `sampling_sigmas`."""
        self.point, self.level, self.done = noise, sigmas[0], False
        self._sigmas, self._step = sigmas, 0
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    @abstractmethod
    def _advance(self, velocity: Tensor) -> None:
        """Sets `point`, `level` and `done`."""

    def advance(self, velocity: Tensor) -> None:
        """Takes the velocity at `point`."""
        self._last = self.point, self.level, velocity
        self._advance(velocity)

    @property
    def expected(self) -> Tensor:
        """The data that the last evaluation expects, x̂ = z − σ v."""
        assert self._last is not None, "nothing has been evaluated"
        point, level, velocity = self._last
        return point - level * velocity

    def _move(self, latents: Tensor) -> None:
        """To the next level."""
        self._step += 1
        self.point, self.level = latents, self._sigmas[self._step]
        self.done = self._step == len(self._sigmas) - 1


class Arrived(Trajectory):
    """A trajectory of no steps."""

    def __init__(self, data: Tensor) -> None:
        super().__init__(data, torch.zeros(1, device=data.device))
        self.done = True

    def _advance(self, velocity: Tensor) -> None:
        raise AssertionError("there are no steps")


class _Euler(Trajectory):
    def _advance(self, velocity: Tensor) -> None:
        self._move(self.point + (self._sigmas[self._step + 1] - self.level) * velocity)


class _Heun(Trajectory):
    _start: tuple[Tensor, Tensor] | None = None  # latents and slope where a step begins, at its second evaluation

    def _advance(self, velocity: Tensor) -> None:
        sigma, following = self._sigmas[self._step], self._sigmas[self._step + 1]
        if self._start is not None:
            latents, slope = self._start
            self._start = None
            self._move(latents + (following - sigma) * ((slope + velocity) / 2))
        elif self._step < len(self._sigmas) - 2:
            self._start = self.point, velocity
            self.point, self.level = self.point + (following - sigma) * velocity, following
        else:  # σ = 0 is never trained
            self._move(self.point + (following - sigma) * velocity)


class _Unipc(Trajectory):
    def __init__(self, noise: Tensor, sigmas: Tensor) -> None:
        self._scheduler = _unipc_scheduler(sigmas)
        # The scheduler works with the logarithm of the signal, so its first level is 1e-6 below one.
        super().__init__(noise, self._scheduler.sigmas.to(noise.device))

    def _advance(self, velocity: Tensor) -> None:
        time = self._scheduler.timesteps[self._step]
        self._move(self._scheduler.step(velocity, time, self.point, return_dict=False)[0])


def trajectory(solver: Solver, noise: Tensor, steps: int, *, shift: float = 1.0) -> Trajectory:
    """A solver at the start of `steps` steps from noise of any shape."""
    return _SOLVERS[solver](noise, sampling_sigmas(steps, shift).to(noise.device))


def integrate(velocity: Velocity, noise: Tensor, steps: int, *, solver: Solver = "euler", shift: float = 1.0) -> Tensor:
    """Integrates a velocity field from noise [B, …] to data in `steps` solver steps (evaluations: see the module)."""
    way = trajectory(solver, noise, steps, shift=shift)
    while not way.done:
        way.advance(velocity(way.point, way.level.expand(noise.shape[0])))
    return way.point


def evaluations(solver: Solver, steps: int) -> int:
    """Evaluations per guidance branch in `steps` steps."""
    return 2 * steps - 1 if solver == "heun" else steps


def _unipc_scheduler(sigmas: Tensor) -> Any:  # noqa: ANN401 - a diffusers scheduler
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        num_train_timesteps=NUM_TRAIN_STEPS, prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2
    )
    scheduler.set_timesteps(sigmas=sigmas[:-1].double().cpu().numpy())
    scheduler.set_begin_index(0)  # else it finds its index by a time truncated to an integer
    return scheduler


_SOLVERS: dict[Solver, type[Trajectory]] = {"euler": _Euler, "heun": _Heun, "unipc": _Unipc}
