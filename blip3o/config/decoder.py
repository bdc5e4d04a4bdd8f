"""Configs of what turns features into pixels: the decoders, and the autoencoders in whose latents some of them work.

Four kinds of decoder: `pixel` (a flow U-Net over pixels, for small images), `sdxl` (BLIP3-o's released decoder), `sana`
(BLIP3-o's SigLIP2 decoder), and `autoencoder` (decodes generated latents directly: objective `vae_flow`).
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from blip3o.config.base import Frozen, require
from blip3o.config.sampler import SamplerConfig


class _Autoencoder(Frozen):
    """Fields that both kinds of autoencoder share."""

    image_size: int = Field(gt=0, description="side of the square image, pixels")
    latent_channels: int = Field(gt=0, description="channels of a latent")
    channels: tuple[int, ...] = Field(
        min_length=1, description="channels at each resolution; the resolution halves from one to the next"
    )
    scaling: float = Field(gt=0, description="factor on the latents that brings their standard deviation near 1")

    @property
    def grid(self) -> int:
        """Latents along one side of an image."""
        return self.image_size // 2 ** (len(self.channels) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of one image's latents."""
        return self.latent_channels, self.grid, self.grid

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        factor = 2 ** (len(self.channels) - 1)
        require(
            self.image_size % factor == 0,
            f"autoencoder: image_size {self.image_size} is not a multiple of 2^(levels - 1) = {factor}",
        )
        return self


class KlConfig(_Autoencoder):
    """A variational autoencoder (`AutoencoderKL` of diffusers; SDXL's has 128/256/512/512, 4 latents, 0.13025)."""

    kind: Literal["kl"]
    layers_per_block: int = Field(default=2, gt=0, description="residual blocks at each resolution")
    groups: int = Field(default=32, gt=0, description="groups of the group norms")


class DcConfig(_Autoencoder):
    """A deep-compression autoencoder (`AutoencoderDC` of diffusers, arXiv 2410.10733; SANA's is f32c32, 0.41407)."""

    kind: Literal["dc"]
    encoder_layers: tuple[int, ...] = Field(description="blocks at each resolution of the encoder")
    decoder_layers: tuple[int, ...] = Field(description="blocks at each resolution of the decoder")
    attention_levels: int = Field(
        ge=0, description="number of lowest resolutions that use linear attention instead of convolutions"
    )
    head_dim: int = Field(default=32, gt=0, description="channels of one attention head")

    @model_validator(mode="after")
    def _one_of_each_level(self) -> Self:
        levels = len(self.channels)
        require(
            len(self.encoder_layers) == len(self.decoder_layers) == levels >= self.attention_levels,
            f"autoencoder: {levels} channels, {len(self.encoder_layers)} encoder_layers, {len(self.decoder_layers)} "
            f"decoder_layers, {self.attention_levels} attention_levels: give one number of layers for each resolution",
        )
        return self


AutoencoderConfig = Annotated[KlConfig | DcConfig, Field(discriminator="kind")]


class _Decoder(Frozen):
    """What every kind of decoder answers."""

    refines_coarse: ClassVar[bool] = False
    """Whether it takes the coarse head's image as input instead of features."""
    decodes_batches: ClassVar[bool] = False
    """Whether inference decodes as many images together as it denoises, else one by one.

    False where one image fills a device. The small U-Net of the pixel decoder takes half the time for 16 images of the
    `tiny` preset in batches of 4.
    """

    @property
    def generated(self) -> "KlConfig | DcConfig | None":
        """The autoencoder whose latents the model generates instead of an encoder's features; None for features."""
        return None

    @property
    def null_branch(self) -> Literal["black", "prompt"] | None:
        """Where the features of the unconditional branch come from; None if decoding has no such branch."""
        return None


class DecoderConfig(_Decoder):
    """The diffusion decoder from features to pixels: a coarse linear image, refined by a flow U-Net."""

    refines_coarse: ClassVar[bool] = True
    decodes_batches: ClassVar[bool] = True

    kind: Literal["pixel"] = "pixel"
    image_size: int = Field(gt=0, description="side of the output image, pixels")
    fold: int = Field(default=2, gt=0, description="side of the pixel blocks folded into channels before the U-Net")
    coarse_width: int = Field(gt=0, description="hidden channels of the coarse head")
    channels: tuple[int, ...] = Field(min_length=1, description="U-Net channels at each resolution")
    layers_per_block: int = Field(default=1, gt=0, description="residual blocks at each resolution")
    num_inference_steps: int = Field(default=8, gt=0, description="Euler steps per image")

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of one image's initial noise."""
        return 3, self.image_size, self.image_size

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        unit = self.fold * 2 ** (len(self.channels) - 1)
        require(
            self.image_size % unit == 0,
            f"decoder: image_size {self.image_size} is not a multiple of fold x 2^levels = {unit}",
        )
        return self


class _LatentDecoder(_Decoder):
    """Fields of decoders that work in an autoencoder's latents.

    Condition dropout in training replaces a condition with the features of a black image.
    """

    autoencoder: AutoencoderConfig = Field(description="the frozen autoencoder in whose latents the decoder works")
    null: Literal["black", "prompt"] = Field(
        description="features of the unconditional branch. black: those of a black image; prompt: those generated for "
        "an empty prompt"
    )

    @property
    def image_size(self) -> int:
        """Side of the output image, pixels."""
        return self.autoencoder.image_size

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of one image's initial noise."""
        return self.autoencoder.latent_shape


class SdxlDecoderConfig(_LatentDecoder):
    """A U-Net in SDXL's layout, conditioned on feature tokens (BLIP3-o's `diffusion-decoder`, sizes of Emu2-Gen)."""

    kind: Literal["sdxl"]
    channels: tuple[int, ...] = Field(min_length=1, description="U-Net channels at each resolution (320, 640, 1280)")
    layers_per_block: int = Field(default=2, gt=0, description="residual blocks at each resolution")
    attention_layers: tuple[int, ...] = Field(
        description="transformer layers after each residual block at each resolution; 0: no attention (0, 2, 10)"
    )
    heads: tuple[int, ...] = Field(description="attention heads at each resolution (5, 10, 20)")
    groups: int = Field(default=32, gt=0, description="groups of the group norms")
    size_width: int = Field(default=256, gt=0, description="channels of the embedding of each of the six size numbers")
    num_inference_steps: int = Field(
        default=50, gt=0, description="Euler steps per image; each is one U-Net evaluation per branch"
    )
    guidance_scale: float = Field(
        default=3.0, ge=0, description="classifier-free guidance scale; 1 skips the unconditional branch"
    )
    condition_dropout: float = Field(default=0.1, ge=0, lt=1, description="probability that training drops a condition")

    @property
    def null_branch(self) -> Literal["black", "prompt"] | None:
        """As configured; none with guidance 1."""
        return None if self.guidance_scale == 1 else self.null

    @model_validator(mode="after")
    def _one_of_each_level(self) -> Self:
        levels = len(self.channels)
        require(
            len(self.attention_layers) == len(self.heads) == levels,
            f"decoder: {levels} channels, {len(self.attention_layers)} attention_layers and {len(self.heads)} heads: "
            "give one of each for each resolution",
        )
        require(
            self.autoencoder.grid % 2 ** (levels - 1) == 0,
            f"decoder: a latent grid of {self.autoencoder.grid} cannot be halved {levels - 1} times",
        )
        return self


class SanaDecoderConfig(_LatentDecoder):
    """SANA's transformer, conditioned on feature tokens through a connector (arXiv 2410.10629; as in BLIP3-o)."""

    kind: Literal["sana"]
    caption_width: int = Field(gt=0, description="channels between connector and transformer (2304)")
    layers: int = Field(gt=0, description="transformer blocks (20)")
    heads: int = Field(gt=0, description="heads of the linear self-attention (70)")
    head_dim: int = Field(gt=0, description="channels of one of its heads (32)")
    cross_heads: int = Field(gt=0, description="heads of the cross-attention (20), each of heads x head_dim / 20")
    mlp_ratio: float = Field(
        default=2.5, gt=0, description="hidden channels of the convolutional MLP, relative to heads x head_dim"
    )
    patch_size: int = Field(default=1, gt=0, description="side of the square of latents folded into one token")
    qk_norm: bool = Field(default=False, description="RMS norm over all heads on queries and keys (SANA-1.5 only)")
    sampler: SamplerConfig = SamplerConfig()

    @property
    def guidance_scale(self) -> float:
        """The sampler's guidance scale."""
        return self.sampler.guidance_scale

    @property
    def condition_dropout(self) -> float:
        """The sampler's condition dropout: the probability that training drops a condition."""
        return self.sampler.condition_dropout

    @property
    def null_branch(self) -> Literal["black", "prompt"] | None:
        """As configured; none with guidance 1."""
        return None if self.guidance_scale == 1 else self.null

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        width = self.heads * self.head_dim
        require(
            width % self.cross_heads == 0, f"decoder: width {width} is not a multiple of {self.cross_heads} cross_heads"
        )
        require(
            self.autoencoder.grid % self.patch_size == 0,
            f"decoder: patch_size {self.patch_size} does not divide the latent grid {self.autoencoder.grid}",
        )
        return self


class AutoencoderDecoderConfig(_Decoder):
    """The autoencoder's own decoder only, for objective `vae_flow`, which generates its latents."""

    kind: Literal["autoencoder"]
    autoencoder: AutoencoderConfig = Field(description="the frozen autoencoder whose latents are generated")

    @property
    def generated(self) -> KlConfig | DcConfig | None:
        """The autoencoder."""
        return self.autoencoder

    @property
    def image_size(self) -> int:
        """Side of the output image, pixels."""
        return self.autoencoder.image_size

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Empty: the autoencoder decodes without noise."""
        return (0,)


def decoder_kind(value: Any) -> str:  # noqa: ANN401 - nested values or a config
    """The kind of decoder that a config, or a section of a recipe, is of."""
    return value.get("kind", "pixel") if isinstance(value, dict) else getattr(value, "kind", "pixel")


AnyDecoderConfig = Annotated[
    Annotated[DecoderConfig, Tag("pixel")]
    | Annotated[SdxlDecoderConfig, Tag("sdxl")]
    | Annotated[SanaDecoderConfig, Tag("sana")]
    | Annotated[AutoencoderDecoderConfig, Tag("autoencoder")],
    Discriminator(decoder_kind),
]
