"""The batch of rows that are being denoised, each with its own latents, noise schedule, guidance and condition.

Every step is one DiT evaluation per guidance branch over all slots, free or occupied. So its arithmetic always has the
shape that `Blip3oPipeline.generate` uses, and a row's values do not depend on the other rows. The caller assigns slots.

Legend: W slots, L latent tokens, F channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip3o.inference.pipeline import Blip3oPipeline
from blip3o.model.condition import Condition as ModelCondition
from blip3o.model.flow import euler_step, guide, sampling_sigmas


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
        zeros = torch.zeros(size, config.num_queries, config.backbone.hidden_size, device=pipeline.device)
        self._model = pipeline.model
        self._shift = config.sampler.shift
        self._null = self._model.denoiser.condition(zeros)
        self._condition = self._model.denoiser.condition(zeros)
        self._latents = torch.zeros(size, *pipeline.model.latent_shape, device=pipeline.device)
        self._guidance = [1.0] * size
        self._sigmas = [sampling_sigmas(1)] * size

    def put(
        self, slot: int, noise_LF: Tensor, *, condition: Condition, num_inference_steps: int, guidance_scale: float
    ) -> None:
        """Starts a row from noise under a condition; a `guidance_scale` of 1 means no guidance."""
        self._condition.put(slot, condition.batch, condition.row)
        self._latents[slot] = noise_LF
        self._guidance[slot] = guidance_scale
        self._sigmas[slot] = sampling_sigmas(num_inference_steps, self._shift)

    def step(self, done_W: Sequence[int | None]) -> None:
        """Advances rows by one step. `done_W` gives the steps that each row has taken; None leaves a slot unchanged."""
        sigma, following = self._noise_levels(done_W)
        velocity = self._model.velocity_under(self._condition, self._latents, sigma)
        guided = [done is not None and g != 1 for done, g in zip(done_W, self._guidance, strict=True)]
        if any(guided):
            null = self._model.velocity_under(self._null, self._latents, sigma)
            velocity = self._guide(velocity, null, guided)
        self._latents = euler_step(self._latents, velocity, sigma, following)

    def features(self, slot: int) -> Tensor:
        """The features [L, F] of the latents in a slot, as a copy."""
        return self._model.to_features(self._latents[slot].clone())

    def _guide(self, conditional: Tensor, null: Tensor, guided_W: Sequence[bool]) -> Tensor:
        """Guides only the rows of `guided_W`: for the others, guidance of 1 would round differently from none."""
        device = conditional.device
        both = guide(conditional, null, torch.tensor(self._guidance, device=device))
        return torch.where(torch.tensor(guided_W, device=device).view(-1, 1, 1), both, conditional)

    def _noise_levels(self, done_W: Sequence[int | None]) -> tuple[Tensor, Tensor]:
        """σ before and after the step, each [W]; both are equal in slots that do not advance."""
        pairs = [
            torch.ones(2) if done is None else sigmas[done : done + 2]
            for sigmas, done in zip(self._sigmas, done_W, strict=True)
        ]
        sigma, following = torch.stack(pairs).to(self._latents.device).unbind(1)
        return sigma, following
