"""JPEG decoding and resampling by vector instructions: the recipe's `data.decode.engine: simd`.

Two small libraries do the work: simplejpeg (libjpeg-turbo, without a Pillow image between) and cykooz-resizer (Rust's
fast_image_resize). Both release the interpreter's lock. Decoded pixels are Pillow's, bit for bit; resampled ones differ
from Pillow's by one level in about one value of two hundred, and do not depend on which instructions a processor has.
They are imported when they are first used: Pillow alone is enough for the other engine.
"""

import importlib.util
import threading
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from blip3o.errors import ConfigError

if TYPE_CHECKING:
    from cykooz_resizer import Resizer

PACKAGES = {"simplejpeg": "simplejpeg", "cykooz_resizer": "cykooz-resizer"}  # by the name of their module


class _OfThread(threading.local):
    """What each thread has for itself."""

    @cached_property
    def resizer(self) -> "Resizer":
        """It keeps a buffer between calls."""
        from cykooz_resizer import Resizer

        return Resizer()


_MINE = _OfThread()


def require_simd() -> None:
    """Raises `ConfigError` if a package that the engine needs is not installed."""
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"data.decode.engine 'simd' needs {' and '.join(missing)}: install 'blip3o[simd]' on every node, or, where "
            "no wheel of it exists, use data.decode.engine=pillow"
        )


def decode_jpeg(data: bytes, width: int, height: int) -> np.ndarray | None:
    """A JPEG file → RGB uint8 [height, width, 3]: its own size, or the half, quarter or eighth of it.

    None if the file is damaged or unusual in any way, or cannot be decoded at that size: Pillow then decides.
    """
    import simplejpeg

    try:
        # The default is strict: what libjpeg only warns of is an error, too.
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=height, min_width=width)
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def resample(pixels: np.ndarray, box: tuple[int, int, int, int], scaled: tuple[int, int], kernel: str) -> np.ndarray:
    """RGB uint8 [H, W, 3] scaled to `scaled` (width, height), of which `box` (left, top, right, bottom) is kept.

    Two passes with an antialiased `kernel`, bicubic (Keys, a = −0.5) or bilinear, pixels rounded to bytes between them:
    along rows first, as `blip3o.data.images.decode.to_square` does.
    """
    from cykooz_resizer import CropBox, FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions

    left, top, right, bottom = box
    height, width, _ = pixels.shape
    algorithm = ResizeAlg.convolution({"bicubic": FilterType.catmull_rom, "bilinear": FilterType.bilinear}[kernel])
    source = ImageData(width, height, PixelType.U8x3, pixels.tobytes())
    wide = ImageData(scaled[0], height, PixelType.U8x3)
    kept = ImageData(right - left, scaled[1], PixelType.U8x3)
    crop = CropBox(left, 0, right - left, height)
    resizer = _MINE.resizer
    resizer.resize(source, wide, ResizeOptions(resize_alg=algorithm, use_alpha=False))
    resizer.resize(wide, kept, ResizeOptions(resize_alg=algorithm, use_alpha=False, crop_box=crop))
    whole = np.frombuffer(kept.get_buffer(), np.uint8).reshape(scaled[1], right - left, 3)
    return whole[top:bottom]
