"""Encoded image → RGB pixels as BLIP3-o takes them: upright, on white, shorter side scaled to S, the centre S×S kept.

Takes bytes that nobody has vouched for: only the formats of training sets are tried, sizes are checked before pixels
are made, and work is bounded by the output. Normalising to floats is the model's business.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from blip3o.data.sample import DamagedSampleError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 100_000_000
# A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as it stays this many times larger than what is wanted.
DRAFT_MARGIN = 2
# What Pillow raises for damaged files (found by flipping and cutting bytes; tests/data/test_decode.py goes on looking).
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, struct.error, zlib.error)


def decode_image(data: bytes, size: int) -> np.ndarray:
    """Encoded bytes → RGB uint8 [size, size, 3].

    Raises `DamagedSampleError` (a `DataError`) if they are no JPEG, PNG or WebP, are damaged, or hold over
    `MAX_PIXELS` pixels.
    """
    return to_square(open_image(data, at_least=size), size)


def open_image(data: bytes, *, at_least: int | None = None) -> Image.Image:
    """Encoded bytes → an upright RGB image on white.

    `at_least` allows a JPEG to be decoded smaller, its shorter side no less than twice that. Raises as `decode_image`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise DamagedSampleError(f"image too large: {image.width}x{image.height} pixels, limit {MAX_PIXELS}")
        if at_least is not None:
            image.draft(None, (DRAFT_MARGIN * at_least, DRAFT_MARGIN * at_least))
        image.load()
        return _on_white(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise DamagedSampleError(f"image too large: over {MAX_PIXELS} pixels") from error
    except DAMAGE as error:
        raise DamagedSampleError(f"undecodable image: {' '.join(str(error).split())[:200]}") from error


def to_square(image: Image.Image, size: int) -> np.ndarray:
    """Scales the shorter side to `size` (bicubic) and keeps the centre: RGB uint8 [size, size, 3].

    Equal to resizing the whole image and cropping after it, but only the pixels that are kept are computed: the crop is
    given to the resampler as a box in the source's coordinates, and its filter still sees the pixels around the box.
    """
    width, height = image.size
    scaled = (size * width // min(width, height), size * height // min(width, height))
    left, top = (round((side - size) / 2) for side in scaled)
    x, y = width / scaled[0], height / scaled[1]
    box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
    return np.asarray(_on_white(image).resize((size, size), Image.Resampling.BICUBIC, box=box))


def _on_white(image: Image.Image) -> Image.Image:
    """RGB, with transparent parts white."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    return image.convert("RGB")
