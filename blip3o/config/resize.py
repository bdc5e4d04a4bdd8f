"""How an image of any shape becomes the square of pixels that a vision tower takes, as data."""

from typing import Literal

from pydantic import Field

from blip3o.config.base import Frozen


class ResizeConfig(Frozen):
    """How an image of any shape becomes a square of pixels."""

    mode: Literal["crop", "stretch"] = Field(
        default="crop",
        description="crop: scale the shorter side, keep the centre (BLIP3-o); stretch: scale both (SigLIP2, Emu2)",
    )
    resample: Literal["bicubic", "bilinear"] = Field(
        default="bicubic", description="filter of the scaling, widened when it makes smaller (Pillow's)"
    )
