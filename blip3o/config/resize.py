"""How an image becomes a vision tower's square input, as data: who decodes it, and how it is resized."""

from typing import Literal

from pydantic import Field

from blip3o.config.base import Frozen


class ResizeConfig(Frozen):
    """How an image of any shape is resized to a square."""

    mode: Literal["crop", "stretch"] = Field(
        default="crop",
        description="crop: scale the shorter side, then crop the center (BLIP3-o); stretch: scale both sides (SigLIP2, "
        "Emu2)",
    )
    resample: Literal["bicubic", "bilinear"] = Field(
        default="bicubic", description="resampling filter, with antialiasing when downscaling (as in Pillow)"
    )


class DecodeConfig(Frozen):
    """Who decodes and resizes the images of training and of the feature cache."""

    engine: Literal["pillow", "simd"] = Field(
        default="pillow",
        description="library that decodes and resizes images. simd: twice as fast or more, by vector instructions "
        "(extra `simd`); a value in two hundred differs from Pillow's by one level, so features and runs of one engine "
        "are not mixed with the other's",
    )
