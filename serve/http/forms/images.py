"""The bodies of the images routes: generations as JSON, edits and variations as multipart forms."""

from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from blip3o.inference.arguments import MAX_GUIDANCE
from serve.http.forms import fields
from serve.http.forms.base import MAX_PROMPT, Body, Whole, fault
from serve.protocol import MAX_IMAGES, MAX_PARTIAL_IMAGES

MAX_SEED = 2**53 - 1 - MAX_IMAGES  # every JSON client can represent the seeds up to seed + n
MAX_STEPS = 250

Level = Literal["low", "medium", "high", "xhigh", "max"]
Quality = Literal["auto", "standard", "low", "medium", "high", "hd", "xhigh", "max"]
OutputFormat = Literal["png", "jpeg", "webp"]

# Steps at a level of quality, as a multiple of the bundle's default.
STEP_FACTORS: dict[Level, float] = {"low": 0.5, "medium": 1, "high": 2, "xhigh": 3, "max": 4}
_LEVELS: dict[Quality, Level] = {
    "auto": "medium",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
    "standard": "medium",  # of DALL·E's API, as the next one
    "hd": "high",
}


def level_of(quality: Quality) -> Level:
    """The level that a name of quality means."""
    return _LEVELS[quality]


class Sampling(Body):
    """How an image is sampled: extensions of OpenAI's API, in the routes that generate images."""

    seed: Whole | None = Field(default=None, ge=0, le=MAX_SEED, description="random if omitted; the reply contains it")
    num_inference_steps: Whole | None = Field(
        default=None,
        ge=1,
        le=MAX_STEPS,
        description="sampling steps; takes precedence over `quality`",
    )
    guidance_scale: float | None = Field(
        default=None, ge=0, le=MAX_GUIDANCE, description="strength of guidance; 1: none, at half the cost"
    )
    negative_prompt: str = Field(
        default="", max_length=MAX_PROMPT, description="what the image should not show; no effect at guidance_scale 1"
    )
    quality: Quality = Field(
        default="auto",
        description="sampling steps, as a multiple of the model's default: low 1/2, auto, standard and medium 1, high "
        "and hd 2, xhigh 3, max 4",
        json_schema_extra={"mapped_to": "num_inference_steps"},
    )

    def steps(self, default: int) -> int:
        """Sampling steps, for a model whose default is `default`."""
        wanted = max(1, round(STEP_FACTORS[level_of(self.quality)] * default))
        return self.num_inference_steps or min(wanted, max(default, MAX_STEPS))


class ImageOptions(Sampling):
    """What the routes for images have in common: how many images, and in which form."""

    model: str | None = Field(default=None, description="the served model's name, if given")
    n: Whole = Field(default=1, ge=1, le=MAX_IMAGES, description="number of images; image i has the seed `seed` + i")
    size: str = Field(default="auto", description="'auto', or the model's own size as WxH")
    background: Literal["auto", "opaque"] = Field(default="auto", description="images have no transparency")
    output_format: OutputFormat = Field(default="png", description="file format of the images")
    output_compression: Whole = Field(default=100, ge=0, le=100, description="quality of jpeg and webp, percent")
    response_format: Literal["b64_json", "url"] = Field(
        default="b64_json", description="the image itself, or a link to it that expires"
    )
    stream: bool = Field(default=False, description="send each image as soon as it is done, as server-sent events")
    partial_images: Whole = Field(
        default=0, ge=0, le=MAX_PARTIAL_IMAGES, description="previews of each image, if it is streamed"
    )

    @model_validator(mode="after")
    def _streams_have_no_links(self) -> Self:
        if self.stream and self.response_format == "url":
            message = "streamed images come as b64_json, as in OpenAI's API: leave response_format or stream out"
            raise fault(("response_format",), self.response_format, message)
        return self


class ImagesBody(ImageOptions):
    """Body of `POST /v1/images/generations`."""

    neutral = fields.IMAGES

    prompt: str = Field(max_length=MAX_PROMPT, description="description of the image")


def _number(value: object) -> object:
    """A number of a form, where all values are texts; other texts stay, so that the error quotes them."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _truth(value: object) -> object:
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


_FORM_TYPES: dict[str, Any] = {
    **dict.fromkeys(("n", "seed", "num_inference_steps", "output_compression", "partial_images"), _number),
    "guidance_scale": _number,
    "stream": _truth,
}


class MultipartForm(ImageOptions):
    """A multipart form. Its texts become JSON's types; files are bytes."""

    image: tuple[bytes, ...] = Field(min_length=1, strict=False, description="the images to start from")

    @field_validator(*_FORM_TYPES, mode="before")
    @classmethod
    def _from_text(cls, value: object, info: ValidationInfo) -> object:
        converted = _FORM_TYPES[info.field_name or ""](value)
        whole = isinstance(converted, float) and converted.is_integer()
        return int(converted) if whole else converted


class EditsForm(MultipartForm):
    """Body of `POST /v1/images/edits`."""

    neutral = fields.EDITS

    prompt: str = Field(max_length=MAX_PROMPT, description="what the edited image shows")
    mask: bytes | None = Field(default=None, description="where to edit: the transparent pixels of a PNG")


class VariationsForm(MultipartForm):
    """Body of `POST /v1/images/variations`."""

    neutral = fields.VARIATIONS
