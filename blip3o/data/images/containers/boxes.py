"""AVIF and HEIC, files of ISO boxes: their formats, and EXIF hidden from their decoders. ISO/IEC 14496-12, 23008-12."""

import re

from blip3o.data.images.containers.parts import Stripped

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_MAX_BRANDS = 64
# The entry of an item: version and flags, its number, its protection, its type.
_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{3}..|\x03.{3}.{4})..)Exif", re.DOTALL)


def iso_format(data: bytes) -> str | None:
    """AVIF or HEIC by the brands that a file names; None for films, and for what has no boxes."""
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), _MAX_BRANDS)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIC" if brands & _HEIC_BRANDS else None


def strip_boxes(data: bytes) -> Stripped:
    """With items of the type Exif renamed, in place. How the picture is turned is said by boxes that decoders obey."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:  # a size of 64 bits follows
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        end = at + size if size >= 8 else len(data)
        if data[at + 4 : at + 8] == b"meta":
            return Stripped(data=data[:at] + _EXIF_ITEM.sub(rb"\1skip", data[at:end]) + data[end:])
        at = end
    return Stripped(data=data)
