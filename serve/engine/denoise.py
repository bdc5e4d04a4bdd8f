"""The batch of rows that are being denoised, each with its own latents, noise schedule, guidance and condition.

A step is one evaluation of the denoiser on the conditional and null rows of all W slots, if any row uses guidance, and
one on the conditional rows, if any row uses none. So its arithmetic always has the shapes that
`Blip3oPipeline.generate` uses, 2 W rows with guidance and W without, and a row's values do not depend on the others.
The caller assigns slots.

Legend: W slots, L latent tokens, F channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip3o.inference.pipeline import Blip3oPipeline
from blip3o.model.condition import Condition as ModelCondition
from blip3o.model.flow import euler_step, sampling_sigmas


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A prompt's condition for all steps: one row of the batch in which it was prepared."""

    batch: ModelCondition
    row: int


def prepare(pipeline: Blip3oPipeline, prompts: Sequence[str]) -> list[Condition]:
    """Conditions of up to `batch_size` prompts, in one pass."""
    batch = pipeline.model.denoiser.condition(pipeline.pad_batch(pipeline.condition(prompts)))
    return [Condition(batch=batch, row=row) for row in range(len(prompts))]


class DenoiseBatch:
    """The state of denoising in a fixed number of slots. A row stays in its slot until another one replaces it."""

    def __init__(self, pipeline: Blip3oPipeline) -> None:
        """All slots hold zeros under the null condition."""
        config, size = pipeline.model.config, pipeline.batch_size
        self._model = pipeline.model
        self._shift = config.sampler.shift
        shape = (size, config.num_queries, config.backbone.hidden_size)
        zeros = torch.zeros(shape, device=pipeline.device, dtype=pipeline.dtype)
        null = self._model.denoiser.condition(zeros)
        self._both = null.joined(null)  # W conditional rows, which `put` overwrites, then W null rows
        self._conditional = self._both.first(size)
        self._latents = torch.zeros(size, *pipeline.model.latent_shape, device=pipeline.device)
        self._guidance = [1.0] * size
        self._sigmas = [sampling_sigmas(1)] * size

    def put(
        self, slot: int, noise_LF: Tensor, *, condition: Condition, num_inference_steps: int, guidance_scale: float
    ) -> None:
        """Starts a row from noise under a condition; a `guidance_scale` of 1 means no guidance."""
        self._both.put(slot, condition.batch, condition.row)
        self._latents[slot] = noise_LF
        self._guidance[slot] = guidance_scale
        self._sigmas[slot] = sampling_sigmas(num_inference_steps, self._shift)

    def step(self, done_W: Sequence[int | None]) -> None:
        """Advances rows by one step. `done_W` gives the steps that each row has taken; None leaves a slot unchanged."""
        sigma, following = self._noise_levels(done_W)
        stepping = [slot for slot, done in enumerate(done_W) if done is not None]
        guided = [slot for slot in stepping if self._guidance[slot] != 1]
        plain = [slot for slot in stepping if self._guidance[slot] == 1]
        velocity = torch.zeros_like(self._latents)
        if guided:
            guidance = torch.tensor(self._guidance, device=self._latents.device)
            velocity[guided] = self._model.guided_velocity(self._both, self._latents, sigma, guidance)[guided]
        if plain:
            velocity[plain] = self._model.velocity(self._conditional, self._latents, sigma)[plain]
        self._latents = euler_step(self._latents, velocity, sigma, following)

    def features(self, slot: int) -> Tensor:
        """The features [L, F] of the latents in a slot, as a copy."""
        return self._model.to_features(self._latents[slot].clone())

    def _noise_levels(self, done_W: Sequence[int | None]) -> tuple[Tensor, Tensor]:
        """σ before and after the step, each [W]; both are equal in slots that do not advance."""
        pairs = [
            torch.ones(2) if done is None else sigmas[done : done + 2]
            for sigmas, done in zip(self._sigmas, done_W, strict=True)
        ]
        sigma, following = torch.stack(pairs).to(self._latents.device).unbind(1)
        return sigma, following
