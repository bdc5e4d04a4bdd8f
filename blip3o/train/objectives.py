"""Each stage's loss, as sums and counts.

A term is a sum over what it judges and, known before any arithmetic, the count of it. The loss of an optimizer step is
Σ weight · (global sum / global count): so neither accumulation nor the number of workers changes it.

Noise, times and condition dropout are drawn per sample from (seed, the sample's draw key): not from rank or batch.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip3o.config.recipe import Recipe
from blip3o.data.text.templates import IGNORE
from blip3o.model.backbone import Prompt
from blip3o.model.decoders.latent import LatentDecoder
from blip3o.model.decoders.pixel import PixelDecoder, to_unit
from blip3o.model.flow import interpolate, min_snr_weight, noise_level, training_sigma, velocity_target
from blip3o.model.unified import UnifiedModel
from blip3o.rng import torch_generator
from blip3o.train.stages import stage_of

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class FlowDraws:
    """Random draws of one micro-batch: noise [B, …], uniform times [B], and whether the condition is kept [B]."""

    noise: Tensor
    uniform: Tensor
    keep: Tensor


def flow_draws(keys_B: Tensor, *, seed: int, kind: str, shape: tuple[int, ...], dropout: float) -> FlowDraws:
    """Draws for each sample from its own generator, keyed by (seed, kind, draw key); made on the CPU."""
    noise, uniform = [], []
    for key in keys_B.tolist():
        generator = torch_generator(seed, kind, key)
        uniform.append(torch.rand(2, generator=generator))
        noise.append(torch.randn(shape, generator=generator))
    times = torch.stack(uniform)
    device = keys_B.device
    return FlowDraws(
        noise=torch.stack(noise).to(device), uniform=times[:, 0].to(device), keep=(times[:, 1] >= dropout).to(device)
    )


class StageModule(nn.Module):
    """The model and the loss of a stage in one module, so that DeepSpeed's engine wraps a single forward."""

    def __init__(self, recipe: Recipe, model: UnifiedModel, *, pad_id: int) -> None:
        super().__init__()
        self.model = model
        self._recipe = recipe
        self._pad_id = pad_id
        self._seed = recipe.run.seed
        self._kind = _kind(recipe)
        self._term = {
            "encoder": self._encoder,
            "understand": self._understand,
            "mse": self._regress,
            "flow": self._generate,
            "pixels": self._decoder,
            "latents": self._latent_decoder,
            "joint": self._joint,
        }[self._kind]

    def counts(self, batch: Batch) -> dict[str, int]:
        """How much each term of this micro-batch will judge: pairs, pixels, tokens or feature elements."""
        rows = batch["draw_key"].shape[0]
        config = self._recipe.model
        pixels = rows * 3 * config.decoder.image_size**2
        generated = rows * math.prod(self.model.latent_shape)
        return {
            "encoder": lambda: {"contrastive": rows, "dense": pixels},
            "understand": lambda: {"text": int((batch["labels"][:, 1:] != IGNORE).sum())},
            "mse": lambda: {"mse": generated},
            "flow": lambda: {"flow": generated * self._recipe.stage.noise_draws},
            "pixels": lambda: {"coarse": pixels, "clean": pixels},
            "latents": lambda: {"latents": rows * math.prod(config.decoder.noise_shape)},
            "joint": lambda: {
                "text": int((batch["labels"][:, 1:] != IGNORE).sum()),
                self._recipe.terms[1]: int(batch["draws"].sum())
                * math.prod(self.model.latent_shape)
                * self._recipe.stage.noise_draws,
            },
        }[self._kind]()

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term in the loss; 1 where none is named."""
        return self._recipe.stage.weights

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """One micro-batch → the sum of each term, scalars, fp32."""
        return self._term(batch)

    def _mask(self, batch: Batch) -> Tensor:
        return (batch["input_ids"] != self._pad_id).long()

    def _encoder(self, batch: Batch) -> dict[str, Tensor]:
        features = self.model.encoder(batch["encoder_pixels"])
        target = to_unit(batch["decoder_pixels"])
        return {
            "contrastive": self.model.contrastive(features, batch["input_ids"], self._mask(batch)).sum(),
            "dense": (self.model.coarse(self._augmented(features, batch["draw_key"])) - target).square().sum(),
        }

    def _understand(self, batch: Batch) -> dict[str, Tensor]:
        prompt = Prompt(
            input_ids=batch["input_ids"],
            attention_mask=self._mask(batch),
            pixels=batch["prompt_pixels"],
            branches=batch.get("branches"),
        )
        labels = batch["labels"][:, 1:]
        states = self.model.backbone.hidden(prompt)[:, :-1]
        supervised = labels != IGNORE  # logits are computed where there is something to judge, and nowhere else
        logits = self.model.backbone.logits(states[supervised]).float()
        return {"text": F.cross_entropy(logits, labels[supervised], reduction="sum")}

    def _joint(self, batch: Batch) -> dict[str, Tensor]:
        """Text of the samples that are asked about, flow of those that are drawn."""
        asked, drawn = split_tasks(batch)
        draw = self._regress if self._recipe.model.objective == "clip_mse" else self._generate
        return self._understand(asked) | {name: value * batch["draws"].any() for name, value in draw(drawn).items()}

    def target_and_states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What is to be generated, [B, L, F], and the query states [B, N, H]."""
        model = self.model
        with torch.no_grad():
            data = model.to_latents(self._features(batch))
        states = model.query_states(Prompt(input_ids=batch["input_ids"], attention_mask=self._mask(batch)))
        return data, states

    def _features(self, batch: Batch) -> Tensor:
        """The features to be generated, [B, L, F], fp32: out of the batch if they came with it, else computed."""
        if "features" in batch:
            return batch["features"].float()
        vae = self._recipe.model.objective == "vae_flow"
        return self.model.features(batch["decoder_pixels" if vae else "encoder_pixels"])

    def _regress(self, batch: Batch) -> dict[str, Tensor]:
        data, states = self.target_and_states(batch)
        return {"mse": (self.model.head.condition(states).prediction - data).float().square().sum()}

    def _generate(self, batch: Batch) -> dict[str, Tensor]:
        model, stage, sampler = self.model, self._recipe.stage, self._recipe.model.sampler
        data, states = self.target_and_states(batch)
        draws = [
            flow_draws(
                batch["draw_key"],
                seed=self._seed,
                kind=f"flow-{draw}",
                shape=model.latent_shape,
                dropout=sampler.condition_dropout,
            )
            for draw in range(stage.noise_draws)
        ]
        # The condition is dropped with the first draw's word for all draws of a sample: so its projection, keys and
        # values are computed once, and the draws are one wide pass of the DiT.
        condition = model.dit.condition(states * draws[0].keep[:, None, None]).repeated(len(draws))
        noise = torch.cat([draw.noise for draw in draws])
        sigma = noise_level(torch.cat([draw.uniform for draw in draws]), stage.flow, shift=sampler.shift)
        data = data.repeat(len(draws), 1, 1)
        velocity = model.dit(interpolate(data, noise, sigma), 1000 * sigma, condition)
        error = (velocity - velocity_target(data, noise)).float().square()
        if stage.flow.min_snr is not None:
            error = error * min_snr_weight(sigma, stage.flow.min_snr)[:, None, None]
        return {"flow": error.sum()}

    def _decoder(self, batch: Batch) -> dict[str, Tensor]:
        if "features" in batch:
            features = batch["features"].to(next(self.model.coarse.parameters()).dtype)  # the encoder's own
        else:
            with torch.no_grad():
                features = self.model.encoder(batch["encoder_pixels"])
        image = to_unit(batch["decoder_pixels"])
        draws = flow_draws(batch["draw_key"], seed=self._seed, kind="pixels", shape=tuple(image.shape[1:]), dropout=0.0)
        sigma = training_sigma(draws.uniform)
        coarse = self.model.coarse(self._augmented(features, batch["draw_key"]))
        decoder = cast("PixelDecoder", self.model.decoder)
        clean = decoder.clean(interpolate(image, draws.noise, sigma), sigma, coarse)
        return {
            "coarse": (coarse - image).square().sum(),
            "clean": (clean - image).square().sum(),
        }

    def _augmented(self, features: Tensor, keys_B: Tensor) -> Tensor:
        """Features [B, L, F] with noise of a deviation uniform in 0 … `feature_noise`, one for each sample."""
        largest = self._recipe.stage.feature_noise
        if not largest:
            return features
        draws = flow_draws(keys_B, seed=self._seed, kind="features", shape=tuple(features.shape[1:]), dropout=0.0)
        return features + largest * draws.uniform[:, None, None] * draws.noise

    def _latent_decoder(self, batch: Batch) -> dict[str, Tensor]:
        decoder = cast("LatentDecoder", self.model.decoder)
        draws = flow_draws(
            batch["draw_key"],
            seed=self._seed,
            kind="pixels",
            shape=decoder.config.noise_shape,
            dropout=decoder.config.condition_dropout,
        )
        with torch.no_grad():
            # A dropped condition is a black image's features, which sampling's null branch takes too.
            features = self.model.encoder(batch["encoder_pixels"] * draws.keep[:, None, None, None])
        noised = decoder.noised(decoder.latents(to_unit(batch["decoder_pixels"])), draws.noise, draws.uniform)
        predicted = decoder.predict(noised.noisy, noised.time, decoder.condition(features))
        return {"latents": (predicted - noised.target).float().square().sum()}


def split_tasks(batch: Batch) -> tuple[Batch, Batch]:
    """A batch of stage `joint` as those of its two tasks: the samples that are asked about, and those to draw.

    Neither is empty: every part of the model runs on every rank, on one sample if there is none for it, whose loss is
    zero, since other ranks wait in their collectives for its gradients, and under ZeRO-3 for its share of the weights.
    """
    requests = {name: rows for name, rows in batch.items() if name not in ("labels", "branches", "prompt_pixels")}
    requests["input_ids"] = requests.pop("draw_ids")
    return _chosen(batch, (batch["labels"] != IGNORE).any(1)), _chosen(requests, batch["draws"])


def _chosen(batch: Batch, mask_B: Tensor) -> Batch:
    """The rows that the mask marks; the first alone if it marks none."""
    rows = mask_B.nonzero().flatten() if mask_B.any() else torch.zeros(1, dtype=torch.long, device=mask_B.device)
    return {name: tensor[rows] for name, tensor in batch.items()}


def _kind(recipe: Recipe) -> str:
    """Which loss a recipe's stage has: that of its name, its objective or its kind of decoder."""
    if recipe.stage.name in ("generate", "instruct"):
        return "mse" if recipe.model.objective == "clip_mse" else "flow"
    if recipe.stage.name == "decoder":
        return "pixels" if recipe.model.decoder.kind == "pixel" else "latents"
    return recipe.stage.name


def build_stage_module(recipe: Recipe, *, image_token_id: int, pad_id: int) -> StageModule:
    """The parts that the recipe's stage uses, uninitialised, with its loss."""
    model = UnifiedModel(
        recipe.model,
        image_token_id=image_token_id,
        parts=stage_of(recipe).parts,
        max_length=recipe.data.max_length,
    )
    return StageModule(recipe, model, pad_id=pad_id)
