"""The unified model: backbone, queries, DiT, encoder and decoder in one module, and their common initialisation.

Parts are built by name, so that a stage or a server holds only what it uses. Each part's parameters live under a prefix
of its own (`encoder.`, `contrastive.`, `backbone.`, `queries`, `dit.`, `coarse.`, `decoder.`), and travel under it.
"""

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from blip3o.config.model import ModelConfig
from blip3o.model.backbone import Backbone, Prompt
from blip3o.model.contrastive import ContrastiveHead
from blip3o.model.decoder import CoarseHead, PixelDecoder
from blip3o.model.dit import DiT, DiTCondition
from blip3o.model.encoder import EvaEncoder
from blip3o.model.flow import guide, integrate
from blip3o.rng import torch_generator

PARTS = ("encoder", "contrastive", "backbone", "queries", "dit", "coarse", "decoder")


class UnifiedModel(nn.Module):
    """Whichever of `PARTS` are asked for. A part that was not built is absent, and using it is an AttributeError."""

    def __init__(self, config: ModelConfig, *, image_token_id: int, parts: Collection[str], max_length: int) -> None:
        super().__init__()
        self.config = config
        channels, hidden, grid = config.encoder.channels, config.backbone.hidden_size, config.encoder.grid
        if "encoder" in parts:
            self.encoder = EvaEncoder(config.encoder)
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
        if "coarse" in parts:
            self.coarse = CoarseHead(config.decoder, feature_dim=channels, grid=grid)
        if "decoder" in parts:
            self.decoder = PixelDecoder(config.decoder)

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Tokens and channels of one image's features."""
        return self.config.encoder.num_tokens, self.config.encoder.channels

    def sample_features(self, states_BNH: Tensor, noise_BLF: Tensor, *, steps: int, guidance: float) -> Tensor:
        """Features [B, L, F] from noise under query states in `steps` Euler steps; guidance 1 takes no null branch."""
        condition = self.dit.condition(states_BNH)
        null = self.dit.condition(torch.zeros_like(states_BNH)) if guidance != 1 else None

        def velocity(latents: Tensor, sigma_B: Tensor) -> Tensor:
            return self.velocity(latents, sigma_B, condition, null, guidance)

        return integrate(velocity, noise_BLF, steps)

    def velocity(
        self,
        latents: Tensor,
        sigma_B: Tensor,
        condition: DiTCondition,
        null: DiTCondition | None,
        guidance: Tensor | float,
    ) -> Tensor:
        """The guided velocity [B, L, F] at σ [B]; without a null condition, the conditional one."""
        conditional = self.dit(latents, 1000 * sigma_B, condition)
        if null is None:
            return conditional
        return guide(conditional, self.dit(latents, 1000 * sigma_B, null), guidance)

    def draw(self, features_BLF: Tensor, noise_B3SS: Tensor) -> Tensor:
        """Features [B, L, F] and pixel noise [B, 3, S, S] → images [B, 3, S, S] in −1 … 1."""
        return self.decoder(self.coarse(features_BLF), noise_B3SS)

    def query_states(self, prompt: Prompt) -> Tensor:
        """Hidden states at the queries [B, N, H], through the frozen prefix."""
        return self.backbone.query_states(prompt, self.queries)


def initialize(model: UnifiedModel, seed: int) -> None:
    """Sets EVERY parameter of the parts that were built, each from its own stream keyed by its name.

    So a part starts from the same numbers whatever else is built beside it. Matrices are normal with deviation
    fan_in^(-1/2); embeddings and positions normal with 0.02, the backbone's with `embedding_std`; queries normal with
    `query_std` (1 upstream); gates `gate_init` (0 upstream); norms one; biases, adaptive scales and last layers zero,
    so that every residual branch of the DiT begins as the identity.
    """
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            _initialize_one(name, parameter, seed, model.config)


_ZERO = (
    "norm1.linear.weight",
    "norm_out.linear_1.weight",
    "norm_out.linear_2.weight",
    "unet.conv_out.weight",
    "cls_token",
)
_KEEP = ("log_scale", "contrastive.bias")
_EMBEDDING = ("text.tokens.weight", "pos_embed", "text.positions")


def _initialize_one(name: str, parameter: Tensor, seed: int, config: ModelConfig) -> None:
    if name.endswith(_KEEP):
        return
    if name.endswith("gate"):
        parameter.fill_(config.dit.gate_init)
    elif name.endswith(_ZERO) or (name.endswith("bias") and parameter.dim() == 1):
        parameter.zero_()
    elif name == "backbone.hf.model.language_model.embed_tokens.weight":
        parameter.normal_(0, config.backbone.embedding_std, generator=torch_generator(seed, "init", name))
    elif name.endswith(_EMBEDDING):
        parameter.normal_(0, 0.02, generator=torch_generator(seed, "init", name))
    elif name == "queries":
        parameter.normal_(0, config.query_std, generator=torch_generator(seed, "init", name))
    elif parameter.dim() == 1:
        parameter.fill_(1)
    else:
        fan_in = parameter[0].numel()
        parameter.normal_(0, 1 / math.sqrt(fan_in), generator=torch_generator(seed, "init", name))
