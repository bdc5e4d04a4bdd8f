"""Encoded image → RGB pixels as an encoder takes them: upright, on white, scaled to S×S as its `ResizeConfig` says.

Accepts untrusted bytes: only the formats that are asked for are tried, sizes are checked before pixels
are made, and no copy of more than `MAX_PIXELS` is made. Metadata never decides over pixels: decoders get files without
it, and how a picture is turned is read tolerantly (see `blip3o.data.images.containers`). Normalising to floats is the
model's business.
"""

import functools
import io
import struct
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFile, features

from blip3o.config.resize import ResizeConfig
from blip3o.config.shards import MAX_PIXELS
from blip3o.data.images import simd
from blip3o.data.images.containers import Stripped, image_format, strip
from blip3o.data.images.containers.orientation import exif_orientation
from blip3o.data.shards.damage import DamagedSampleError

FORMATS = ("JPEG", "PNG", "WEBP")
# A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as it stays this many times larger than what is wanted.
DRAFT_MARGIN = 2
# What decoders raise for damaged files (found by flipping, cutting and inserting bytes; the tests keep looking).
# MemoryError is not among them: sizes are checked, so it says that the machine is short of memory.
DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, ImportError, LookupError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError, Warning, struct.error, zlib.error),
)
# What undoes each orientation but 1, upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

CROP = ResizeConfig()
View = tuple[int, ResizeConfig]  # side in pixels, and how a picture comes to it
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def decode_image(data: bytes, size: int, resize: ResizeConfig = CROP, engine: str = "pillow") -> np.ndarray:
    """Encoded bytes → RGB uint8 [size, size, 3], by an engine of `DecodeConfig`.

    Raises `DamagedSampleError` (a `DataError`) if they are no JPEG, PNG or WebP, are damaged, or hold over
    `MAX_PIXELS` pixels.
    """
    return decode_views(data, [(size, resize)], engine)[size, resize]


def open_image(
    data: bytes,
    *,
    at_least: int | None = None,
    max_pixels: int = MAX_PIXELS,
    formats: Collection[str] = FORMATS,
) -> Image.Image:
    """Encoded bytes → an upright RGB image on white; of a file with several frames, the first.

    `at_least` allows a JPEG to be decoded smaller, its shorter side no less than twice that. `formats` are the formats
    that are tried, by the names of `image_format`; see `decodable`. Raises as `decode_image`.
    """
    source = _source(data, formats)
    with _explained():
        return _pixels(_header(source, at_least, max_pixels), source)


@functools.cache
def decodable(kind: str) -> bool:
    """Whether a decoder is installed for a format that `image_format` names. HEIC needs the package pillow-heif."""
    if kind == "HEIC":
        return _register_heif()
    Image.init()
    return kind in Image.OPEN and (kind not in ("AVIF", "WEBP") or bool(features.check(kind.lower())))


def _register_heif() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def decode_views(data: bytes, views: Iterable[View], engine: str = "pillow") -> dict[View, np.ndarray]:
    """What `decode_image` gives for each view (size, resize) on its own, with as few decodes as that allows.

    A view's pixels must not depend on which other views are wanted, or a feature cache could not equal training
    without one. So a JPEG is decoded once for each scale that the views call for, and any other picture once. Raises
    as `decode_image`.
    """
    source = _source(data, FORMATS)
    load, square = _ENGINES[engine]
    decoded: dict[tuple[int, int], Any] = {}
    squares: dict[View, np.ndarray] = {}
    for size, resize in dict.fromkeys(views):
        with _explained():
            header = _header(source, size, MAX_PIXELS)
            if header.size not in decoded:
                decoded[header.size] = load(header, source)
        squares[size, resize] = square(decoded[header.size], size, resize)
    return squares


@dataclass(frozen=True, slots=True)
class _Source:
    """A file whose decoder is known, without its metadata."""

    kind: str
    stripped: Stripped

    def open(self) -> ImageFile.ImageFile:
        """A picture whose pixels are not made yet.

        `Image.open` would hide why a file cannot be opened, and warn of large ones, which have a limit here.
        """
        opener, _ = Image.OPEN["HEIF" if self.kind == "HEIC" else self.kind]
        return opener(io.BytesIO(self.stripped.data), "")


def _source(data: bytes, formats: Collection[str]) -> _Source:
    kind = image_format(data)
    if kind is None:
        raise DamagedSampleError(f"undecodable image: no {', '.join(formats)}")
    if kind not in formats:
        raise DamagedSampleError(f"undecodable image: format {kind}, only {', '.join(formats)} are read")
    if not decodable(kind):
        raise DamagedSampleError(f"undecodable image: format {kind}, and no decoder of it is installed")
    return _Source(kind, strip(data, kind))


def _header(source: _Source, at_least: int | None, max_pixels: int) -> ImageFile.ImageFile:
    """A picture whose pixels are not made yet; its size is that to which it will be decoded."""
    image = source.open()
    if image.width * image.height > max_pixels:
        raise DamagedSampleError(f"image too large: {image.width}x{image.height} pixels, limit {max_pixels}")
    if at_least is not None:
        image.draft(None, (DRAFT_MARGIN * at_least, DRAFT_MARGIN * at_least))
    return image


def _pixels(image: ImageFile.ImageFile, source: _Source) -> Image.Image:
    """The pixels behind a header: RGB, upright, on white."""
    image.load()
    if image.mode in ("I", "F"):
        raise DamagedSampleError(f"format not read: {source.kind} of 32 bits a channel (save it with 8 or 16)")
    found = source.stripped.orientation
    if source.kind == "AVIF":  # its decoder puts the turn that the format prescribes into a block of its own
        found = exif_orientation(image.info.get("exif", b"")) or found
    opaque = _without_transparent_color(image, source) if source.stripped.transparent else _on_white(image)
    return opaque.transpose(TURNS[found]) if found in TURNS else opaque


def _without_transparent_color(image: Image.Image, source: _Source) -> Image.Image:
    """A grey or RGB picture with one colour white, which is compared at its full depth.

    Pillow compares the upper halves of samples of 16 bits, and samples of 2 and 4 bits at the wrong scale.
    """
    color = np.array(source.stripped.transparent, np.uint16)
    # Samples of 1 bit are booleans here. A transparent 1 is not found, and is white already.
    samples = np.asarray(image).reshape(image.height, image.width, -1)
    clear = (samples == (color >> 8 if source.stripped.wide and image.mode == "RGB" else color)).all(-1)
    if source.stripped.wide and image.mode == "RGB":
        clear &= (_lower_halves(source) == (color & 255)).all(-1)
    pixels = np.array(_on_white(image))
    pixels[clear] = 255
    return Image.fromarray(pixels)


def _lower_halves(source: _Source) -> np.ndarray:
    """The lower bytes of an RGB PNG of 16 bits a sample, uint8 [H, W, 3], of which Pillow keeps the upper ones.

    Read as if the lower byte came first, samples have their lower byte for the upper one.
    """
    image = source.open()
    image.tile = [part._replace(args="RGB;16L") for part in image.tile]
    image.load()
    return np.asarray(image)


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what Pillow raises for damaged files into `DamagedSampleError`."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise DamagedSampleError(f"image too large: over {MAX_PIXELS} pixels") from error
    except DAMAGE as error:
        # Pillow wraps what reading past the end of a header raises in a SyntaxError.
        cut = isinstance(error, SyntaxError) and isinstance(error.__cause__, (IndexError, EOFError, struct.error))
        reason = "its header is cut off" if cut else " ".join(str(error).split())[:200]
        raise DamagedSampleError(f"undecodable image: {reason}") from error


def to_square(image: Image.Image, size: int, resize: ResizeConfig = CROP) -> np.ndarray:
    """An image as a square: RGB uint8 [size, size, 3].

    By default the shorter side is scaled to `size` (bicubic, antialiased) and the centre kept, as BLIP3-o's own
    preprocessing does. Scaling is two passes with pixels rounded to bytes between them. They run along rows first, the
    order of the Pillow that upstream used; newer ones take the cheaper order, whose pixels differ by tens of levels at
    sharp edges.
    """
    image = _on_white(image)
    scaled = _scaled_sides(image.size, size, resize)
    left, top = (round((side - size) / 2) for side in scaled)
    if scaled[0] * image.height > MAX_PIXELS:
        return _kept_pixels_alone(image, size, scaled, FILTERS[resize.resample])
    wide = image.resize((scaled[0], image.height), FILTERS[resize.resample]).crop((left, 0, left + size, image.height))
    return np.asarray(wide.resize((size, scaled[1]), FILTERS[resize.resample]).crop((0, top, size, top + size)))


def _fast_pixels(image: ImageFile.ImageFile, source: _Source) -> np.ndarray:
    """As `_pixels`, RGB uint8 [H, W, 3]: a JPEG's by the fast decoder, unless that refuses it."""
    plain = source.kind == "JPEG" and image.mode == "RGB"
    pixels = simd.decode_jpeg(source.stripped.data, *image.size) if plain else None
    if pixels is None:
        return np.asarray(_pixels(image, source))
    turn = TURNS.get(source.stripped.orientation)
    return pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn))


def _fast_square(pixels: np.ndarray, size: int, resize: ResizeConfig) -> np.ndarray:
    """As `to_square`, by the fast resampler; strips, whose scaled copy would be huge, are left to Pillow."""
    height, width, _ = pixels.shape
    scaled = _scaled_sides((width, height), size, resize)
    if scaled[0] * height > MAX_PIXELS:
        return to_square(Image.fromarray(pixels), size, resize)
    left, top = (round((side - size) / 2) for side in scaled)
    return simd.resample(pixels, (left, top, left + size, top + size), scaled, resize.resample)


_Load = Callable[[ImageFile.ImageFile, _Source], Any]
_Square = Callable[[Any, int, ResizeConfig], np.ndarray]
# By the engine's name: what makes the pixels behind a header, and what makes a square of these.
_ENGINES: dict[str, tuple[_Load, _Square]] = {
    "pillow": (_pixels, to_square),
    "simd": (_fast_pixels, _fast_square),
}


def without_color(pixels_SS3: np.ndarray) -> np.ndarray:
    """RGB uint8 [S, S, 3] → its luma (ITU-R BT.601) in all three channels."""
    return np.asarray(Image.fromarray(pixels_SS3).convert("L").convert("RGB"))


def _scaled_sides(sides: tuple[int, int], size: int, resize: ResizeConfig) -> tuple[int, int]:
    """Width and height to which an image of these sides is scaled, before its centre is kept."""
    if resize.mode == "stretch":
        return size, size
    width, height = sides
    return size * width // min(sides), size * height // min(sides)


def _kept_pixels_alone(
    image: Image.Image, size: int, scaled: tuple[int, int], resample: Image.Resampling
) -> np.ndarray:
    """For strips, whose scaled copy would be huge: only the kept pixels are computed.

    The crop is given to the resampler as a box in the source's coordinates, and its filter still sees the pixels around
    the box. Equal to scaling first but for rounding.
    """
    x, y = image.width / scaled[0], image.height / scaled[1]
    left, top = (round((side - size) / 2) for side in scaled)
    box = (left * x, top * y, min((left + size) * x, image.width), min((top + size) * y, image.height))
    return np.asarray(image.resize((size, size), resample, box=box))


def _on_white(image: Image.Image) -> Image.Image:
    """RGB, with transparent parts white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    return image.convert("RGB")
