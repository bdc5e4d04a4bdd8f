"""The unified model: backbone, queries, DiT, encoder and decoder in one module, and its initialization.

Parts are built by name, so a stage or a server holds only what it uses. Each part's parameters have their own prefix
(`encoder.`, `contrastive.`, `backbone.`, `queries`, `dit.`, `head.`, `latent_scale.`, `coarse.`, `decoder.`), also in
checkpoints and bundles.

Features are what an image is encoded to; latents are what the flow works on: the features, normalized or not.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from blip3o.config.decoder import DecoderConfig
from blip3o.config.model import ModelConfig
from blip3o.model.backbone import Backbone, Prompt
from blip3o.model.condition import Condition, Denoiser
from blip3o.model.contrastive import ContrastiveHead
from blip3o.model.decoders.autoencoder import AutoencoderDecoder
from blip3o.model.decoders.build import build_decoder
from blip3o.model.decoders.pixel import CoarseHead, to_unit
from blip3o.model.dit import DiT
from blip3o.model.encoder import build_encoder
from blip3o.model.flow import NUM_TRAIN_STEPS, guide, integrate
from blip3o.model.latent_scale import LatentScale
from blip3o.model.regression import RegressionHead
from blip3o.rng import torch_generator

PARTS = ("encoder", "contrastive", "backbone", "queries", "dit", "head", "latent_scale", "coarse", "decoder")


class UnifiedModel(nn.Module):
    """The model, with those of the requested `parts` that the config has (see `PARTS`).

    A part that was not built does not exist: using it raises `AttributeError`.
    """

    def __init__(self, config: ModelConfig, *, image_token_id: int, parts: Collection[str], max_length: int) -> None:
        super().__init__()
        self.config = config
        parts = set(parts) & config.parts
        channels, hidden, grid = config.latent_channels, config.backbone.hidden_size, config.latent_grid
        if "encoder" in parts:
            self.encoder = build_encoder(config.encoder)
        if "contrastive" in parts and config.text_tower is not None:
            self.contrastive = ContrastiveHead(
                config.text_tower,
                features=config.encoder.num_tokens * channels,
                vocab_size=config.backbone.vocab_size,
                max_length=max_length,
            )
        if "backbone" in parts:
            self.backbone = Backbone(config.backbone, image_token_id=image_token_id)
        if "queries" in parts:
            self.queries = nn.Parameter(torch.empty(config.num_queries, hidden))
        if "dit" in parts:
            self.dit = DiT(config.dit, in_channels=channels, grid=grid, condition_dim=hidden)
        if "head" in parts:
            self.head = RegressionHead(hidden, channels)
        if "latent_scale" in parts:
            self.latent_scale = LatentScale(channels)
        if "coarse" in parts and isinstance(config.decoder, DecoderConfig):  # always true here: for the type checker
            self.coarse = CoarseHead(config.decoder, feature_dim=channels, grid=grid)
        if "decoder" in parts:
            self.decoder = build_decoder(config.decoder, feature_dim=channels)

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Latent tokens and channels of one generated image, (L, F)."""
        return self.config.latent_shape

    def has(self, part: str) -> bool:
        """Whether one of `PARTS` was built."""
        return hasattr(self, part)

    @property
    def generates(self) -> bool:
        """Whether the denoiser was built."""
        return self.has(self.config.generation.predictor)

    @property
    def denoiser(self) -> Denoiser[Any]:
        """The part that predicts the velocity: the DiT, or the regression head."""
        return getattr(self, self.config.generation.predictor)

    def features(self, pixels_BSS3: Tensor) -> Tensor:
        """Images, uint8 [B, S, S, 3] of side `config.target_size` → the features [B, L, F] to be generated, fp32."""
        if "encoder" in self.config.parts:
            return self.encoder(pixels_BSS3).float()
        return cast("AutoencoderDecoder", self.decoder).encode(to_unit(pixels_BSS3))

    def to_latents(self, features_BLF: Tensor) -> Tensor:
        """Features [..., L, F] → latents [..., L, F]."""
        return self.latent_scale.normalize(features_BLF) if self.config.normalize_latents else features_BLF

    def to_features(self, latents_BLF: Tensor) -> Tensor:
        """Latents [..., L, F] → features [..., L, F]: the inverse of `to_latents`."""
        return self.latent_scale.restore(latents_BLF) if self.config.normalize_latents else latents_BLF

    def sample_features(
        self,
        states_BNH: Tensor,
        noise_BLF: Tensor,
        *,
        num_inference_steps: int,
        guidance_scale: float,
        null_states_BNH: Tensor | None = None,
    ) -> Tensor:
        """Samples features [B, L, F] from noise, given query states; a `guidance_scale` of 1 skips the null branch.

        The null branch has `null_states_BNH`, those of a negative prompt, or zeros as in training.
        What depends only on the condition is computed once, not at each step. A guided step is one evaluation of the
        denoiser on 2 B rows, a step without guidance one on B rows.
        """
        sampler = self.config.sampler
        guided = guidance_scale != 1
        null_states = torch.zeros_like(states_BNH) if null_states_BNH is None else null_states_BNH
        # Both in one pass: all passes of a batch have one number of rows.
        condition = self.denoiser.condition(torch.cat([states_BNH, null_states]) if guided else states_BNH)

        def velocity(latents: Tensor, sigma_B: Tensor) -> Tensor:
            if guided:
                return self.guided_velocity(condition, latents, sigma_B, guidance_scale)
            return self.velocity(condition, latents, sigma_B)

        return self.to_features(
            integrate(velocity, noise_BLF, num_inference_steps, solver=sampler.solver, shift=sampler.shift)
        )

    def guided_velocity(
        self, both: Condition, latents: Tensor, sigma_B: Tensor, guidance_scale: Tensor | float
    ) -> Tensor:
        """The guided velocity [B, L, F] at σ [B]: one evaluation on the conditional and the null rows together.

        `both` is the condition of 2 B rows, the conditional ones first. A tensor of guidance scales is per row, [B].
        """
        conditional, null = self.velocity(both, latents.repeat(2, 1, 1), sigma_B.repeat(2)).chunk(2)
        return guide(conditional, null, guidance_scale)

    def velocity(self, condition: Condition, latents: Tensor, sigma_B: Tensor) -> Tensor:
        """The velocity [B, L, F] under a condition at σ [B]: one evaluation of the denoiser."""
        time = NUM_TRAIN_STEPS * sigma_B
        return self.denoiser(latents, time.trunc() if self.config.sampler.truncate_time else time, condition)

    def decode(self, features_BLF: Tensor, noise: Tensor, null_LF: Tensor | None = None) -> Tensor:
        """Features [B, L, F] → images [B, 3, S, S], about −1 … 1.

        `noise` is [B, *config.decoder.noise_shape]; `null_LF` holds the null branch's features, for a decoder with
        guidance.
        """
        return self.decoder(self.decoder_input(features_BLF), noise, null_LF)

    def decoder_input(self, features_BLF: Tensor) -> Tensor:
        """The decoder's input: the coarse head's image [B, 3, S, S] if the model has that head, else the features."""
        return self.coarse(features_BLF) if "coarse" in self.config.parts else features_BLF

    def query_states(self, prompt: Prompt) -> Tensor:
        """Hidden states at the queries [B, N, H].

        Uses the frozen prefix, or one full pass if gradients have to reach the backbone.
        """
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.backbone.parameters()):
            return self.backbone.query_states_full(prompt, self.queries)
        return self.backbone.query_states(prompt, self.queries)

    def compile_layers(self) -> None:
        """Compiles the layers of encoder, language model and denoiser in place, those that exist.

        All layers of a kind share their code, so that each kind is compiled once, in the first pass with each kind of
        input: images, prompts, queries. Sizes are symbols from the first batch on. Were they constants until one
        changes, the kernels that compute a batch, and its rounding, would depend on the batches before it.
        """
        if self.has("encoder"):
            self.encoder.compile_layers()
        if self.has("backbone"):
            for layer in self.backbone.text.layers:
                layer.compile(dynamic=True)
        if self.generates:
            for block in self.denoiser.blocks:
                block.compile(dynamic=True)


def initialize(model: UnifiedModel, seed: int) -> None:
    """Initializes EVERY parameter of the parts that were built, each from a random stream keyed by its name.

    So a part starts from the same numbers whichever other parts are built. Matrices are normal with standard deviation
    fan_in^(-1/2); embeddings and positions normal with 0.02, the backbone's with `embedding_std`; queries normal with
    `query_std` (1 upstream); gates `gate_init` (0 upstream); norms one, but √5.5 after SANA's connector (upstream's);
    biases, adaptive scales and last layers zero, so that every residual branch of the DiT starts as the identity.
    """
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.copy_(initial_value(name, parameter.shape, seed, model.config))


def initial_value(name: str, shape: Sequence[int], seed: int, config: ModelConfig) -> Tensor:
    """What `initialize` gives the parameter `name` of this shape: fp32, on the CPU."""
    value = torch.empty(tuple(shape), dtype=torch.float32, device="cpu")
    _initialize_one(name, value, seed, config)
    return value


_ZERO = (
    "norm1.linear.weight",
    "norm_out.linear_1.weight",
    "norm_out.linear_2.weight",
    "unet.conv_out.weight",
    "decoder.transformer.proj_out.weight",
    "cls_token",
)
_EMBEDDING = ("position_embedding.weight", "text.tokens.weight", "pos_embed", "text.positions")


def _initialize_one(name: str, parameter: Tensor, seed: int, config: ModelConfig) -> None:
    if name.endswith("log_scale"):  # of SigLIP's loss, as in the paper
        parameter.fill_(math.log(10))
    elif name == "contrastive.bias":
        parameter.fill_(-5)
    elif name.endswith("gate"):
        parameter.fill_(config.dit.gate_init)
    elif name.endswith(_ZERO) or (name.endswith("bias") and parameter.dim() == 1):
        parameter.zero_()
    elif name.startswith("backbone.") and name.endswith("embed_tokens.weight"):
        parameter.normal_(0, config.backbone.embedding_std, generator=torch_generator(seed, "init", name))
    elif name.endswith(_EMBEDDING):
        parameter.normal_(0, 0.02, generator=torch_generator(seed, "init", name))
    elif name == "queries":
        parameter.normal_(0, config.query_std, generator=torch_generator(seed, "init", name))
    elif name == "decoder.connector.3.weight":
        parameter.fill_(math.sqrt(5.5))
    elif parameter.dim() == 1:
        parameter.fill_(1)
    else:
        fan_in = parameter[0].numel()
        parameter.normal_(0, 1 / math.sqrt(fan_in), generator=torch_generator(seed, "init", name))
