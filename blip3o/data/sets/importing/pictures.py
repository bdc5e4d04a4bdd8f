"""A picture's file into what a shard holds: JPEG, PNG and WebP as they are, what else can be decoded as PNG."""

import io
from dataclasses import dataclass

from PIL import Image

from blip3o.data.images.containers import image_format
from blip3o.data.images.decode import DAMAGE, decodable, open_image
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.storage.magic import SNIFFED_BYTES, recognise

_STORED = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # phones' MPO is a JPEG with further pictures after it
_CONVERTED = ("TIFF", "BMP", "GIF", "AVIF", "HEIC", "JPEG2000", "PSD", "ICO")
_READ = ", ".join((*_STORED, *_CONVERTED))
READ_EXTENSIONS = frozenset(
    "jpg jpeg jpe jfif jif jfi pjpeg pjp png apng webp tif tiff bmp dib gif avif avifs heic heif hif jp2 j2k j2c jpf "
    "jpx psd ico".split()
)
# Many raw photos are TIFFs whose first picture is a thumbnail: they go by their name.
_RAW = frozenset(
    "3fr arw cr2 cr3 crw dcr dng erf kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f".split()
)
_UNREAD = frozenset(
    "ai cur dds eps exr fits hdr icns jxl jxr pam pbm pcx pgm pnm ppm qoi sgi svg svgz tga wmf xbm xcf xpm".split()
)
PICTURE_EXTENSIONS = READ_EXTENSIONS | _RAW | _UNREAD
_FIXES = {
    "HEIC": "install the extra heic, or save it as JPEG",
    "AVIF": "install pillow>=11.3, or save it as JPEG or PNG",
}
_FLOATS = ("F", "I")  # modes of 32 bits per pixel, whose range is not stated


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as a shard stores it: its bytes and their extension. `format` and `frames` are of the file it was."""

    data: bytes
    ext: str
    format: str
    frames: int

    @property
    def converted(self) -> bool:
        """Whether the bytes are not those of the file."""
        return self.format not in _STORED


def extension(name: str) -> str:
    """What follows the last dot of a file's name, in lower case; empty where there is none."""
    base = name.rpartition("/")[2]
    return base.rpartition(".")[2].lower() if "." in base else ""


def stored_picture(data: bytes, name: str, *, max_pixels: int) -> Picture:
    """The picture in a file of this name, upright and of its first frame where it is converted.

    Raises `DamagedSampleError` if it cannot be read, is of a format that is not, or holds over `max_pixels` pixels.
    """
    ext, kind = extension(name), image_format(data)
    if kind not in _STORED and ext in _RAW:
        raise DamagedSampleError(f"format not read: {ext.upper()} (a raw photo: save it as JPEG or TIFF)")
    if kind is None:
        raise DamagedSampleError(_no_picture(data, ext))
    if kind not in (*_STORED, *_CONVERTED) or not decodable(kind):
        raise DamagedSampleError(f"format not read: {kind} ({_FIXES.get(kind, 'save it as PNG or JPEG')})")
    if kind in _STORED:
        open_image(data, max_pixels=max_pixels)
        return Picture(data=data, ext=_STORED[kind], format=kind, frames=1)
    return _converted(data, kind, max_pixels)


def _no_picture(data: bytes, ext: str) -> str:
    if ext in _UNREAD:
        return f"format not read: {ext.upper()} (save it as PNG or JPEG)"
    return f"undecodable image: {found_instead(data) or f'no {_READ}'}"


def found_instead(data: bytes, *, is_text: bool = False) -> str:
    """What a file is that should be a picture, or its text (`is_text`), and what to do; empty where that is unknown."""
    start = data[:SNIFFED_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:4].lower() == b"<svg" or (start.startswith(b"<?xml") and b"<svg" in start):
        return "is an SVG file: save it as PNG"
    if start.startswith(b"%PDF"):
        return "is a PDF: save its pages as PNG or JPEG"
    return recognise(data[:SNIFFED_BYTES], size=len(data), is_text=is_text) or ""


def _converted(data: bytes, kind: str, max_pixels: int) -> Picture:
    image = open_image(data, max_pixels=max_pixels, formats=_CONVERTED)
    mode, frames = _facts(data, kind)
    if mode in _FLOATS:
        raise DamagedSampleError(f"format not read: {kind} of 32 bits a channel (save it with 8 or 16)")
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return Picture(data=sink.getvalue(), ext="png", format=kind, frames=frames)


def _facts(data: bytes, kind: str) -> tuple[str, int]:
    """The mode of a picture that can be decoded, and how many frames or pages its file has: "" and 1 where its
    metadata hide them."""
    try:
        image = Image.open(io.BytesIO(data), formats=["HEIF" if kind == "HEIC" else kind])
        return image.mode, getattr(image, "n_frames", 1)
    except (*DAMAGE, Image.DecompressionBombError):
        return "", 1
