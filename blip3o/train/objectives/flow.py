"""Flow matching: the DiT predicts the velocity between noise and features (`clip_flow`) or latents (`vae_flow`)."""

import torch
from torch import Tensor

from blip3o.model.flops import formulas
from blip3o.model.flow import interpolate, min_snr_weight, noise_level, training_sigma, velocity_target
from blip3o.model.unified import UnifiedModel
from blip3o.train.objectives.base import Batch
from blip3o.train.objectives.draws import Draw, drawn
from blip3o.train.objectives.generating import Generating

_VALIDATION = "validation"


class FlowMatching(Generating):
    """Trains queries and DiT on `flow`: squared errors of the velocity, with `stage.noise_draws` noises per sample."""

    @property
    def draws(self) -> tuple[Draw, ...]:
        """Noise, time and whether to keep the condition, `stage.noise_draws` times."""
        return tuple(
            Draw(
                kind=f"flow-{number}",
                seed=self.recipe.run.seed,
                shape=self.recipe.model.latent_shape,
                dropout=self.recipe.model.sampler.condition_dropout,
            )
            for number in range(self.recipe.stage.noise_draws)
        )

    @property
    def held_out_draws(self) -> tuple[Draw, ...]:
        """One noise, and one relative position within the bins of σ, by `evaluate.seed`."""
        return (Draw(kind=_VALIDATION, seed=self.recipe.evaluate.seed, shape=self.recipe.model.latent_shape),)

    def counts_for(self, rows: int) -> dict[str, int]:
        """Elements of the latents, times the number of draws."""
        return {"flow": self.num_elements(rows) * self.recipe.stage.noise_draws}

    def loss(self, model: UnifiedModel, batch: Batch) -> dict[str, Tensor]:
        """Squared errors of the velocity, for each of the draws."""
        stage, sampler = self.recipe.stage, self.recipe.model.sampler
        data, states = self.target_and_states(model, batch)
        draws = [drawn(batch, draw.kind) for draw in self.draws]
        # The first draw decides for all draws of a sample whether its condition is dropped. So the condition's
        # projection, keys and values are computed once, and all draws go through the DiT in one batch.
        condition = model.dit.condition(states * draws[0].keep[:, None, None]).repeated(len(draws))
        noise = torch.cat([draw.noise for draw in draws])
        sigma = noise_level(torch.cat([draw.uniform for draw in draws]), stage.flow, shift=sampler.shift)
        data = data.repeat(len(draws), 1, 1)
        velocity = model.dit(interpolate(data, noise, sigma), 1000 * sigma, condition)
        error = (velocity - velocity_target(data, noise)).float().square()
        if stage.flow.min_snr is not None:
            error = error * min_snr_weight(sigma, stage.flow.min_snr)[:, None, None]
        return {"flow": error.sum()}

    def held_out(self, model: UnifiedModel, batch: Batch) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Squared errors in each of `evaluate.sigma_bins` bins of the noise level σ, from low to high, [bins].

        Each sample has one noise and one relative position within the bins, by its draw key and `evaluate.seed`.
        """
        bins = self.recipe.evaluate.sigma_bins
        data, states = self.target_and_states(model, batch)
        condition = model.dit.condition(states)
        draws = drawn(batch, _VALIDATION)
        target = velocity_target(data, draws.noise)
        errors = []
        for number in range(bins):
            sigma = training_sigma((bins - 1 - number + draws.uniform) / bins)
            velocity = model.dit(interpolate(data, draws.noise, sigma), 1000 * sigma, condition)
            errors.append((velocity - target).float().square().sum())
        return {"flow": torch.stack(errors)}, {"flow": self.num_elements(len(batch["draw_key"]))}

    def predictor_flops(self, rows: int) -> dict[str, int]:
        """The DiT, for every draw."""
        draws = self.recipe.stage.noise_draws
        return {"dit": formulas.diffusion_transformer(self.recipe.model, rows=rows, draws=draws)}
