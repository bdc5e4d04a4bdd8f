"""Images as files: PNG, JPEG or WebP, with what made them in their metadata."""

import base64
import io
import json
from dataclasses import dataclass
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from serve.http.forms.images import OutputFormat
from serve.protocol import GenerateRequest, ModelInfo

HEADER = "x-blip3o-provenance"
KEYWORD = "blip3o"  # of the PNG's text chunk
_DESCRIPTION = 0x010E  # EXIF's ImageDescription, in JPEG and WebP


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What an image is a function of, but for its prompts. `bundle` is the sha256 of the bundle."""

    bundle: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    solver: str

    @property
    def text(self) -> str:
        """As JSON, in ASCII."""
        return json.dumps(vars(self), sort_keys=True)


def provenance(request: GenerateRequest, number: int, info: ModelInfo) -> Provenance:
    """What image number `number` of a request is a function of."""
    return Provenance(
        bundle=info.bundle_sha256,
        seed=request.seeds[number],
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        solver=info.solver,
    )


@dataclass(frozen=True, kw_only=True)
class FileStyle:
    """How images become files: `quality` of JPEG and WebP in percent; `size` (width, height), pixels, if resampled."""

    file_format: OutputFormat
    quality: int
    size: tuple[int, int] | None = None

    @property
    def media_type(self) -> str:
        """The media type of the files."""
        return f"image/{self.file_format}"

    def encode(self, image: Image.Image, made_by: Provenance) -> bytes:
        """An image as a file: the same bytes for the same image."""
        if self.size and self.size != image.size:
            image = image.resize(self.size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, format=self.file_format, **self._options(made_by))
        return buffer.getvalue()

    def _options(self, made_by: Provenance) -> dict[str, Any]:
        if self.file_format == "png":
            info = PngInfo()
            info.add_text(KEYWORD, made_by.text)
            return {"pnginfo": info}
        exif = Image.Exif()
        exif[_DESCRIPTION] = made_by.text
        return {"quality": self.quality, "exif": exif}


def base64_of(data: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(data).decode()


def data_url(data: bytes, media_type: str) -> str:
    """Bytes as a `data:` URL."""
    return f"data:{media_type};base64,{base64_of(data)}"
