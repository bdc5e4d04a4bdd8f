"""Which format a file is of, and the way to strip it."""

from collections.abc import Callable

from blip3o.data.images.containers.boxes import iso_format, strip_boxes
from blip3o.data.images.containers.jpeg import strip_jpeg
from blip3o.data.images.containers.parts import Stripped
from blip3o.data.images.containers.png import strip_png
from blip3o.data.images.containers.tiff import strip_tiff
from blip3o.data.images.containers.webp import strip_webp

# A BMP is distinguished from text that begins with "BM" by the size of its second header.
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_MAGIC = (
    ("JPEG", b"\xff\xd8\xff"),
    ("PNG", b"\x89PNG\r\n\x1a\n"),
    ("GIF", b"GIF87a"),
    ("GIF", b"GIF89a"),
    ("TIFF", b"II*\0"),
    ("TIFF", b"MM\0*"),
    ("TIFF", b"II+\0"),  # BigTIFF
    ("TIFF", b"MM\0+"),
    ("JPEG2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
    ("JPEG2000", b"\xff\x4f\xff\x51"),
    ("JXL", b"\0\0\0\x0cJXL \r\n\x87\n"),
    ("JXL", b"\xff\x0a"),
    ("PSD", b"8BPS"),
    ("ICO", b"\0\0\1\0"),
)
_STRIPPERS: dict[str, Callable[[bytes], Stripped]] = {
    "JPEG": strip_jpeg,
    "PNG": strip_png,
    "WEBP": strip_webp,
    "TIFF": strip_tiff,
    "AVIF": strip_boxes,
    "HEIC": strip_boxes,
}


def image_format(data: bytes) -> str | None:
    """The image format that the magic bytes of a file name, whether or not it can be decoded; None for anything else.

    Known: JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, HEIC, JPEG2000, JXL, PSD, ICO. The first 64 bytes are enough.
    """
    for kind, magic in _MAGIC:
        if data.startswith(magic):
            return kind
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return iso_format(data)


def strip(data: bytes, kind: str) -> Stripped:
    """A file of a format that `image_format` names, without what does not affect its pixels.

    Takes time in proportion to the number of its parts. The bytes are copied only if there is something to leave out.
    """
    stripper = _STRIPPERS.get(kind)
    return stripper(data) if stripper else Stripped(data=data)
