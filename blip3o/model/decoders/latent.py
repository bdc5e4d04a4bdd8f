"""Diffusion decoders in the latents of a frozen autoencoder, conditioned on feature tokens.

`SdxlDecoder` is BLIP3-o's released decoder (after Emu2-Gen): a U-Net in SDXL's layout that predicts noise, conditioned
on the tokens, their mean and the image's size. `SanaDecoder` is BLIP3-o's decoder of SigLIP2 features: a connector and
SANA's transformer, with flow matching. Both networks are those of `diffusers`; parameters keep their names.

Decoding computes what depends only on the features once, the null condition once for the whole batch, and then runs
`num_inference_steps` evaluations with conditional and null rows stacked.

Legend: B batch, L feature tokens, F feature channels, C latent channels, h x w latent grid.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blip3o.config.decoder import SanaDecoderConfig, SdxlDecoderConfig
from blip3o.config.sampler import FlowConfig
from blip3o.model.decoders.autoencoder import build_autoencoder, to_images, to_latents
from blip3o.model.decoders.base import Decoder, Operation, Tensors
from blip3o.model.flow import (
    NUM_TRAIN_STEPS,
    Trajectory,
    evaluations,
    guide,
    interpolate,
    noise_level,
    trajectory,
    velocity_target,
)

BETAS = (0.00085, 0.012)  # first and last β of SDXL's schedule, which is linear in √β


@dataclass(frozen=True, kw_only=True)
class Noised:
    """A training example: noisy latents [B, C, h, w], their time [B], and the target [B, C, h, w]."""

    noisy: Tensor
    time: Tensor
    target: Tensor


class LatentDecoder(Decoder):
    """Base of both decoders. The autoencoder's parameters have the prefix `vae.`; the trained network has its own."""

    config: SdxlDecoderConfig | SanaDecoderConfig
    _condition_width: int  # tensors of `condition`

    def __init__(self, config: SdxlDecoderConfig | SanaDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = build_autoencoder(config.autoencoder)

    def latents(self, images_B3SS: Tensor) -> Tensor:
        """Images [B, 3, S, S] in −1 … 1 → their latents [B, C, h, w], the target."""
        return to_latents(self.vae, images_B3SS)

    @abstractmethod
    def condition(self, features_BLF: Tensor) -> Tensors:
        """Features [B, L, F] → the condition of every step; each tensor has the batch as first dimension."""

    @abstractmethod
    def noised(self, latents_BChw: Tensor, noise_BChw: Tensor, uniform_B: Tensor) -> Noised:
        """A training example from clean latents, noise, and a uniform draw in [0, 1) for its time."""

    @abstractmethod
    def predict(self, noisy_BChw: Tensor, time_B: Tensor, condition: Tensors) -> Tensor:
        """The network's prediction of the target [B, C, h, w]."""

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Network evaluations per branch in one decode."""

    def prepare(self, inputs: Tensor, null_LF: Tensor | None) -> Tensors:
        """The condition of features [B, L, F], followed by that of `null_LF` for guidance, if there is one."""
        condition = self.condition(inputs)
        if null_LF is None:
            return condition
        null = self.condition(null_LF[None])
        return *condition, *(part.expand(inputs.shape[0], *part.shape[1:]) for part in null)

    def evaluate(self, point: Tensor, level_B: Tensor, prepared: Tensors) -> Tensor:
        """The prediction [B, C, h, w], guided if there is a null condition: then one evaluation of both branches."""
        width = self._condition_width
        condition, null = prepared[:width], prepared[width:]
        if not null:
            return self.predict(point, level_B, condition)
        both = tuple(torch.cat(pair) for pair in zip(condition, null, strict=True))
        conditional, unconditional = self.predict(point.repeat(2, 1, 1, 1), level_B.repeat(2), both).chunk(2)
        return guide(conditional, unconditional, self.config.guidance_scale)

    def images(self, reached: Tensor, prepared: Tensors) -> Tensor:
        """Clean latents → images."""
        return to_images(self.vae, reached)

    def operations(self, inputs: Tensor, noise: Tensor) -> Iterator[Operation]:
        """The condition, the network for each branch and step, and the autoencoder's decoder."""
        condition, time = self.condition(inputs), noise.new_empty(noise.shape[0])
        branches = 1 if self.config.guidance_scale == 1 else 2
        yield Operation(name="decoder's condition", run=lambda: self.condition(inputs))
        yield Operation(
            name="decoder", run=lambda: self.predict(noise, time, condition), calls=branches * self.evaluations
        )
        yield Operation(name="latents to pixels", run=lambda: to_images(self.vae, noise))


class SdxlDecoder(LatentDecoder):
    """Noise prediction by a U-Net: cross-attention to the tokens; their mean and six sizes join the time embedding."""

    config: SdxlDecoderConfig
    _condition_width = 2

    def __init__(self, config: SdxlDecoderConfig, *, feature_dim: int) -> None:
        super().__init__(config)
        self.unet = _unet(config, feature_dim)

    @property
    def evaluations(self) -> int:
        """One per step."""
        return self.config.num_inference_steps

    def condition(self, features_BLF: Tensor) -> Tensors:
        """The tokens [B, L, F] and their mean [B, F]."""
        return features_BLF, features_BLF.mean(dim=1)

    def noised(self, latents_BChw: Tensor, noise_BChw: Tensor, uniform_B: Tensor) -> Noised:
        """√ᾱ_t x + √(1 − ᾱ_t) ε at t = floor(1000 u) in 0 … 999; the target is ε (DDPM, arXiv 2006.11239)."""
        time = torch.floor(uniform_B * NUM_TRAIN_STEPS)
        signal = signal_levels().to(time.device)[time.long()].to(latents_BChw.dtype).view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents_BChw + (1 - signal).sqrt() * noise_BChw
        return Noised(noisy=noisy, time=time, target=noise_BChw)

    def predict(self, noisy_BChw: Tensor, time_B: Tensor, condition: Tensors) -> Tensor:
        """The predicted noise [B, C, h, w] at times 0 … 999."""
        dtype, side = self.unet.dtype, self.config.image_size
        tokens, pooled = (part.to(dtype) for part in condition)
        # Original size, crop corner, target size: whole square images, in training as in sampling.
        sizes = torch.tensor([side, side, 0, 0, side, side], device=tokens.device, dtype=dtype)
        added = {"text_embeds": pooled, "time_ids": sizes.expand(tokens.shape[0], 6)}
        output = self.unet(noisy_BChw.to(dtype), time_B, encoder_hidden_states=tokens, added_cond_kwargs=added)
        return output.sample.to(noisy_BChw.dtype)

    def start(self, noise: Tensor, steps: int | None = None) -> Trajectory:
        """diffusers' Euler scheduler in BLIP3-o's setting, one evaluation per step and branch."""
        return _DiscreteEuler(noise, steps or self.config.num_inference_steps)


class SanaDecoder(LatentDecoder):
    """Flow matching by SANA's transformer, on tokens that a connector maps to its caption width."""

    config: SanaDecoderConfig
    _condition_width = 1

    def __init__(self, config: SanaDecoderConfig, *, feature_dim: int) -> None:
        super().__init__(config)
        width = config.caption_width
        self.connector = nn.Sequential(
            nn.Linear(feature_dim, width),
            nn.GELU(approximate="tanh"),
            nn.Linear(width, width),
            nn.RMSNorm(width, eps=1e-5),
        )
        self.transformer = _sana(config)

    @property
    def evaluations(self) -> int:
        """As many as the solver takes."""
        return evaluations(self.config.sampler.solver, self.config.sampler.num_inference_steps)

    def condition(self, features_BLF: Tensor) -> Tensors:
        """The tokens through the connector, [B, L, caption_width]."""
        return (self.connector(features_BLF.to(self.transformer.dtype)),)

    def noised(self, latents_BChw: Tensor, noise_BChw: Tensor, uniform_B: Tensor) -> Noised:
        """(1 − σ) x + σ ε at time 1000 σ with uniform σ; the target is ε − x, as in `model.flow`."""
        sigma = noise_level(uniform_B, FlowConfig(), shift=self.config.sampler.shift)
        return Noised(
            noisy=interpolate(latents_BChw, noise_BChw, sigma),
            time=NUM_TRAIN_STEPS * sigma,
            target=velocity_target(latents_BChw, noise_BChw),
        )

    def predict(self, noisy_BChw: Tensor, time_B: Tensor, condition: Tensors) -> Tensor:
        """The predicted velocity [B, C, h, w] at times 1 … 1000."""
        output = self.transformer(
            noisy_BChw.to(self.transformer.dtype), encoder_hidden_states=condition[0], timestep=time_B
        )
        return output.sample.to(noisy_BChw.dtype)

    def evaluate(self, point: Tensor, level_B: Tensor, prepared: Tensors) -> Tensor:
        """The guided velocity [B, C, h, w] at σ [B]."""
        time = NUM_TRAIN_STEPS * level_B
        return super().evaluate(point, time.trunc() if self.config.sampler.truncate_time else time, prepared)

    def start(self, noise: Tensor, steps: int | None = None) -> Trajectory:
        """The flow from noise to latents by the configured solver."""
        sampler = self.config.sampler
        return trajectory(sampler.solver, noise, steps or sampler.num_inference_steps, shift=sampler.shift)


class _DiscreteEuler(Trajectory):
    """Noise prediction: `point` is the scaled latents until the end, `level` the time in 0 … 999."""

    def __init__(self, noise: Tensor, steps: int) -> None:
        self._scheduler = _euler_scheduler(steps)
        super().__init__(noise, self._scheduler.timesteps.to(noise.device))
        self._latents = noise * self._scheduler.init_noise_sigma
        self.point = self._scheduler.scale_model_input(self._latents, self._scheduler.timesteps[0])

    def _advance(self, velocity: Tensor) -> None:
        times = self._scheduler.timesteps
        self._latents = self._scheduler.step(velocity, times[self._step], self._latents, return_dict=False)[0]
        self._step += 1
        self.done = self._step == len(times)
        if self.done:
            self.point = self._latents
        else:
            self.level = self._sigmas[self._step]
            self.point = self._scheduler.scale_model_input(self._latents, times[self._step])


def signal_levels() -> Tensor:
    """ᾱ_t of SDXL's 1000 training steps, [1000] fp32: running products of 1 − β, √β linear between `BETAS`."""
    first, last = (beta**0.5 for beta in BETAS)
    betas = torch.linspace(first, last, NUM_TRAIN_STEPS, dtype=torch.float64).square()
    return (1 - betas).cumprod(0).float()


def _euler_scheduler(steps: int) -> Any:  # noqa: ANN401 - a diffusers scheduler
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(
        num_train_timesteps=NUM_TRAIN_STEPS,
        beta_start=BETAS[0],
        beta_end=BETAS[1],
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def _unet(config: SdxlDecoderConfig, feature_dim: int) -> Any:  # noqa: ANN401 - a module of diffusers
    from diffusers import UNet2DConditionModel

    down = ["CrossAttnDownBlock2D" if layers else "DownBlock2D" for layers in config.attention_layers]
    up = ["CrossAttnUpBlock2D" if layers else "UpBlock2D" for layers in reversed(config.attention_layers)]
    channels = config.autoencoder.latent_channels
    return UNet2DConditionModel(
        sample_size=config.autoencoder.grid,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        down_block_types=down,
        up_block_types=up,
        transformer_layers_per_block=[max(layers, 1) for layers in config.attention_layers],
        attention_head_dim=config.heads,  # diffusers' name for the number of heads
        cross_attention_dim=feature_dim,
        norm_num_groups=config.groups,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=config.size_width,
        projection_class_embeddings_input_dim=feature_dim + 6 * config.size_width,
    )


def _sana(config: SanaDecoderConfig) -> Any:  # noqa: ANN401 - as above
    from diffusers import SanaTransformer2DModel

    width, channels = config.heads * config.head_dim, config.autoencoder.latent_channels
    return SanaTransformer2DModel(
        in_channels=channels,
        out_channels=channels,
        num_layers=config.layers,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        num_cross_attention_heads=config.cross_heads,
        cross_attention_head_dim=width // config.cross_heads,
        cross_attention_dim=width,
        caption_channels=config.caption_width,
        mlp_ratio=config.mlp_ratio,
        sample_size=config.autoencoder.grid,
        patch_size=config.patch_size,
        qk_norm="rms_norm_across_heads" if config.qk_norm else None,
    )
