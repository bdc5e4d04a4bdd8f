"""How an image of any shape is resized to a vision tower's square input, as data."""

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
