"""The sizes of every part of the model, as data. Imports no torch, so any laptop can read, check and print a recipe.

Shapes that follow from these numbers are properties. The modules in `blip3o.model` are built from them and hard-code no
sizes. Field names follow the published configuration files where those exist.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from blip3o.config.backbone import BackboneConfig
from blip3o.config.base import Frozen, require
from blip3o.config.decoder import AnyDecoderConfig
from blip3o.config.objectives import GeneratingName, Generation, generation_of
from blip3o.config.resize import ResizeConfig
from blip3o.config.sampler import SamplerConfig


class EncoderConfig(Frozen):
    """The vision tower whose pooled features are the generation target."""

    kind: Literal["eva_clip", "siglip2"] = Field(
        default="eva_clip",
        description="eva_clip: post-norm, CLS token dropped (the released target); siglip2: pre-norm, no final norm. "
        "For `hidden_states[-2]` of a published tower, set one layer fewer than it has",
    )
    resize: ResizeConfig = ResizeConfig()
    image_size: int = Field(gt=0, description="side of the square input image, pixels")
    patch_size: int = Field(gt=0, description="side of one patch, pixels")
    width: int = Field(gt=0, description="channels of a token")
    layers: int = Field(gt=0, description="transformer blocks")
    heads: int = Field(gt=0, description="attention heads")
    mlp_width: int = Field(gt=0, description="hidden channels of the MLP")
    feature_dim: int | None = Field(
        default=None,
        gt=0,
        description="channels of a generated feature, projected after pooling; if omitted, `width`, unprojected "
        "(the released model)",
    )
    pool: int = Field(
        gt=0, description="side of the average-pooling window over the patch grid (4 in the released model)"
    )
    normalize: bool = Field(
        default=False,
        description="normalize each pooled token to zero mean and unit variance over its channels (the released model "
        "does not)",
    )

    @property
    def channels(self) -> int:
        """Channels of a generated feature."""
        return self.feature_dim or self.width

    @property
    def patches(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def grid(self) -> int:
        """Pooled tokens along one side."""
        return self.patches // self.pool

    @property
    def num_tokens(self) -> int:
        """Pooled tokens of one image."""
        return self.grid**2

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        require(
            self.image_size % self.patch_size == 0,
            f"encoder: image_size {self.image_size} is not a multiple of patch_size {self.patch_size}",
        )
        require(
            self.patches % self.pool == 0,
            f"encoder: {self.patches} patches a side are not a multiple of pool {self.pool}",
        )
        require(self.width % self.heads == 0, f"encoder: width {self.width} is not a multiple of heads {self.heads}")
        return self


class DiTConfig(Frozen):
    """The diffusion transformer over pooled features (NextDiT with cross-attention)."""

    patch_size: int = Field(
        default=1, gt=0, description="side of the square of features folded into one token (1 in the released model)"
    )
    dim: int = Field(gt=0, description="channels of a latent token inside the transformer")
    layers: int = Field(gt=0, description="blocks")
    heads: int = Field(gt=0, description="attention heads")
    kv_heads: int = Field(gt=0, description="key/value heads")
    mlp_width: int = Field(gt=0, description="hidden channels of the SwiGLU (4864 at dim 1792)")
    time_width: int = Field(gt=0, description="channels of the time and caption embedding (1024 in the released model)")
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon of the RMS norms")
    gate_init: float = Field(
        default=0.0,
        description="initial value of the cross-attention gates, before tanh (0 in the released model). AdamW moves a "
        "gate by about the learning rate per step, so gates that start at 0 hardly open within a few hundred steps",
    )

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        require(
            self.dim % (4 * self.heads) == 0,
            f"dit: dim {self.dim} is not a multiple of 4 x heads {self.heads} (2-D rotary)",
        )
        require(
            self.heads % self.kv_heads == 0, f"dit: heads {self.heads} are not a multiple of kv_heads {self.kv_heads}"
        )
        return self


class TextTowerConfig(Frozen):
    """The text tower for contrastive pretraining of a small encoder."""

    width: int = Field(gt=0, description="channels of a token")
    layers: int = Field(gt=0, description="transformer blocks")
    heads: int = Field(gt=0, description="attention heads")
    embed_dim: int = Field(gt=0, description="channels of the shared image-text space")


class ModelConfig(Frozen):
    """The complete model."""

    num_queries: int = Field(default=64, gt=0, description="learnable queries appended to the prompt (N)")
    query_std: float = Field(
        default=1.0,
        gt=0,
        description="standard deviation of the queries' initial values; near embedding_std for a small backbone",
    )
    objective: GeneratingName = Field(
        default="clip_flow",
        description="what the generation stage predicts. clip_flow: the encoder's features by flow matching (the "
        "paper's choice); clip_mse: the same by regression; vae_flow: the autoencoder's latents by flow matching",
    )
    normalize_latents: bool = Field(
        default=False,
        description="normalize each channel of the target to zero mean and unit standard deviation, with statistics "
        "measured by `blip3o latents` (upstream does not)",
    )
    encoder: EncoderConfig
    text_tower: TextTowerConfig | None = Field(
        default=None, description="text tower of contrastive pretraining; only the encoder stage needs it"
    )
    backbone: BackboneConfig
    dit: DiTConfig
    decoder: AnyDecoderConfig = Field(description="what turns features into pixels")
    sampler: SamplerConfig = SamplerConfig()

    @property
    def generation(self) -> Generation:
        """How the model generates."""
        return generation_of(self.objective)

    @property
    def latent_grid(self) -> int:
        """Latent tokens along one side of the grid that is generated."""
        return self.encoder.grid if self.decoder.generated is None else self.decoder.generated.grid

    @property
    def latent_channels(self) -> int:
        """Channels of one latent token."""
        return self.encoder.channels if self.decoder.generated is None else self.decoder.generated.latent_channels

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Latent tokens and channels of one generated image, (L, F)."""
        return self.latent_grid**2, self.latent_channels

    @property
    def target_size(self) -> int:
        """Side in pixels of the image that a generation target is computed from."""
        return self.encoder.image_size if self.decoder.generated is None else self.decoder.image_size

    @property
    def target_resize(self) -> ResizeConfig:
        """How an image is resized to that square."""
        return self.encoder.resize if self.decoder.generated is None else ResizeConfig()

    @property
    def parts(self) -> frozenset[str]:
        """Names of the parts that this model has (see `blip3o.model.unified.PARTS`)."""
        parts = {"backbone", "queries", "decoder", self.generation.predictor}
        if self.decoder.generated is None:
            parts.add("encoder")
        if self.decoder.refines_coarse:
            parts.add("coarse")
        if self.text_tower is not None:
            parts.add("contrastive")
        if self.normalize_latents:
            parts.add("latent_scale")
        return frozenset(parts)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        size, grid, patch = self.decoder.image_size, self.latent_grid, self.dit.patch_size
        require(grid % patch == 0, f"dit: patch_size {patch} does not divide the feature grid {grid}")
        require(
            not self.decoder.refines_coarse or size % grid == 0,
            f"decoder: image_size {size} is not a multiple of the feature grid {grid}",
        )
        require(
            (self.generation.targets == "decoder") == (self.decoder.generated is not None),
            f"objective {self.objective} does not go with decoder.kind {self.decoder.kind}: vae_flow needs "
            "'autoencoder', and no other objective takes it",
        )
        return self

    @model_validator(mode="after")
    def _regression_takes_one_pass(self) -> Self:
        if self.generation.draws_noise:
            return self
        plain = SamplerConfig(num_inference_steps=1, guidance_scale=1, condition_dropout=0)
        require(
            self.sampler == plain,
            f"objective {self.objective} predicts in one pass: give sampler "
            "{num_inference_steps: 1, guidance_scale: 1, condition_dropout: 0} and nothing else",
        )
        tokens = self.encoder.num_tokens
        require(
            self.num_queries == tokens,
            f"objective {self.objective} maps each query to one feature: num_queries {self.num_queries} is not "
            f"{tokens}",
        )
        return self
