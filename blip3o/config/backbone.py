"""Sizes of the backbone: the language model that reads prompts, and its vision tower.

Imports no torch. Three families of `transformers` models are supported: Qwen2.5-VL, Qwen3 with a SigLIP2 tower, Llama.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from blip3o.config.base import Frozen, require
from blip3o.config.resize import ResizeConfig


class VisionConfig(Frozen):
    """The backbone's own vision tower."""

    kind: Literal["qwen2_5_vl", "siglip2"] = Field(
        default="qwen2_5_vl",
        description="qwen2_5_vl: that model's own tower and merger; siglip2: a SigLIP2 tower with an MLP projector "
        "(linear, GELU, linear) to the language model",
    )
    resize: ResizeConfig = ResizeConfig()
    image_size: int = Field(gt=0, description="side of the square input image, pixels")
    patch_size: int = Field(gt=0, description="side of one patch, pixels")
    merge: int = Field(default=2, gt=0, description="patches merged along one side into one language token")
    width: int = Field(gt=0, description="channels of a patch token")
    layers: int = Field(gt=0, description="transformer blocks")
    heads: int = Field(gt=0, description="attention heads")
    mlp_width: int = Field(gt=0, description="hidden channels of the MLP")
    window: int | None = Field(
        default=None,
        gt=0,
        description="side of an attention window, pixels (112 in Qwen2.5-VL); if omitted, every block attends to the "
        "whole image",
    )
    full_layers: tuple[int, ...] = Field(
        default=(), description="blocks that attend to the whole image despite `window` (Qwen2.5-VL: 7, 15, 23, 31)"
    )

    @property
    def grid(self) -> int:
        """Language tokens along one side of an image."""
        return self.image_size // self.patch_size // self.merge

    @property
    def num_tokens(self) -> int:
        """Language tokens per image."""
        return self.grid**2

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        unit = self.patch_size * self.merge
        require(
            self.image_size % unit == 0,
            f"vision: image_size {self.image_size} is not a multiple of patch_size x merge = {unit}",
        )
        require(
            self.width % (4 * self.heads) == 0,
            f"vision: width {self.width} is not a multiple of 4 x heads {self.heads} (2-D rotary)",
        )
        require(
            self.kind != "siglip2" or (self.merge == 1 and self.window is None),
            "vision: a siglip2 tower merges no patches and has no windows: set merge 1 and omit window",
        )
        return self


class Llama3Rope(Frozen):
    """Llama 3's scaling of the rotary embedding to longer contexts; names are those of its config.json."""

    factor: float = Field(gt=0, description="scaling factor of low frequencies (32 in Llama-3.2-1B)")
    low_freq_factor: float = Field(
        default=1.0,
        gt=0,
        description="wavelengths above original_max_position_embeddings / low_freq_factor are scaled by `factor`",
    )
    high_freq_factor: float = Field(
        default=4.0,
        gt=0,
        description="wavelengths below original_max_position_embeddings / high_freq_factor are not scaled",
    )
    original_max_position_embeddings: int = Field(
        default=8192, gt=0, description="context length of the original pretraining, tokens"
    )


class BackboneConfig(Frozen):
    """The language model that reads prompts, and its vision tower, if it has one."""

    family: Literal["qwen2_5_vl", "qwen3", "llama"] = Field(
        default="qwen2_5_vl",
        description="qwen2_5_vl: the released 4B and 8B; qwen3: the jointly trained variant, with a siglip2 tower; "
        "llama: the text-only model of the paper's ablation",
    )
    vocab_size: int = Field(gt=0, description="rows of the token embedding; at least the tokenizer's vocabulary size")
    hidden_size: int = Field(gt=0, description="channels of a token (H)")
    layers: int = Field(gt=0, description="decoder layers")
    heads: int = Field(gt=0, description="attention heads")
    kv_heads: int = Field(gt=0, description="key/value heads (grouped-query attention)")
    head_width: int | None = Field(
        default=None,
        gt=0,
        description="channels of one attention head (128 in every Qwen3); if omitted, hidden_size / heads",
    )
    mlp_width: int = Field(gt=0, description="hidden channels of the gated MLP")
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon of the RMS norms (1e-6 in Qwen2.5-VL and Qwen3)")
    rope_theta: float = Field(default=1e6, gt=0, description="base of the rotary embedding")
    rope_scaling: Llama3Rope | None = Field(default=None, description="RoPE scaling of Llama 3.1 and later")
    positions: Literal["native", "upstream"] = Field(
        default="native",
        description="position ids of the tokens before the queries. native: as in the backbone's own training "
        "(Qwen2.5-VL: time, row, column); upstream: sequential, also for image tokens, as in the training of the "
        "released weights. Text replies always use native ids, as upstream's do. Without an image in the prompt, the "
        "two are equal",
    )
    tied: bool = Field(default=True, description="whether the language-model head shares the embedding's weights")
    embedding_std: float = Field(
        default=0.02,
        gt=0,
        description="standard deviation of the token embeddings' initial values; about H^(-1/2) suits a short run",
    )
    vision: VisionConfig | None = Field(default=None, description="the vision tower; if omitted, a text-only backbone")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        require(
            self.head_width is not None or self.hidden_size % self.heads == 0,
            f"backbone: hidden_size {self.hidden_size} is not a multiple of heads {self.heads}",
        )
        require(self.head_dim % 2 == 0, f"backbone: {self.head_dim} channels of a head are not even (rotary embedding)")
        require(
            self.heads % self.kv_heads == 0,
            f"backbone: heads {self.heads} are not a multiple of kv_heads {self.kv_heads}",
        )
        return self

    @model_validator(mode="after")
    def _family_fits(self) -> Self:
        tower = None if self.vision is None else self.vision.kind
        wanted = ("qwen2_5_vl",) if self.family == "qwen2_5_vl" else ("siglip2", None)
        require(
            tower in wanted,
            f"backbone: family {self.family} takes a vision tower of kind {wanted[0]}, not {tower or 'none'}",
        )
        require(
            self.head_width is None or self.family != "qwen2_5_vl",
            "backbone: family qwen2_5_vl derives head_width from hidden_size / heads: omit it",
        )
        require(
            self.rope_scaling is None or self.family == "llama", f"backbone: family {self.family} has no rope_scaling"
        )
        return self

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.head_width or self.hidden_size // self.heads

    @property
    def image_tokens(self) -> int:
        """Language tokens per image; 0 for a text-only backbone."""
        return 0 if self.vision is None else self.vision.num_tokens

    @property
    def image_size(self) -> int:
        """Side of the square image that the backbone reads, pixels; 0 for a text-only backbone."""
        return 0 if self.vision is None else self.vision.image_size

    @property
    def image_resize(self) -> ResizeConfig:
        """How an image is resized to that square."""
        return ResizeConfig() if self.vision is None else self.vision.resize

    @property
    def mrope_section(self) -> tuple[int, int, int]:
        """Rotary frequencies for time, row, column: 1/4, 3/8, 3/8 of head_dim / 2 (Qwen2.5-VL: 16, 24, 24)."""
        half = self.head_dim // 2
        spatial = half * 3 // 8
        return half - 2 * spatial, spatial, spatial
