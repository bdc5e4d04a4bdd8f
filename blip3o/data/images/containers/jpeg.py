"""JPEG without its metadata: ITU-T T.81, annex B; https://www.w3.org/Graphics/JPEG/itu-t81.pdf."""

import re

from blip3o.data.images.containers.orientation import orientation
from blip3o.data.images.containers.parts import Span, Stripped, without

_SCAN, _COMMENT = 0xDA, 0xFE
_SEGMENTS = {*range(0xC0, 0xC8), *range(0xC9, 0xD0), *range(0xDB, 0xF0), _COMMENT}
_BARE = {0x00, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}  # a stuffed byte, and markers without a length
# What libjpeg takes the colour space from, at the lengths from which on it looks at them.
_KEPT = ((0xE0, b"JFIF\0", 14), (0xEE, b"Adobe", 12))
_XMP = re.compile(rb"[!-~]{1,60}/xap/1\.0/\0")


def strip_jpeg(data: bytes) -> Stripped:
    """Without comments and application segments before the first scan, but for those that colours depend on."""
    dropped: list[Span] = []
    exif: list[bytes] = []
    xmp: list[bytes] = []
    at = 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 3:
        marker = data[at + 1]
        if marker == 0xFF or marker in _BARE:
            at += 1 if marker == 0xFF else 2
            continue
        # A length counts its own two bytes. Decoders take a smaller one for an empty segment.
        body, end = at + 4, at + 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
        if marker == _SCAN or marker not in _SEGMENTS or end > len(data):
            break
        if marker >= 0xE0 and not _colors_depend_on(data, marker, body, end):
            dropped.append((at, end))
            if marker == 0xE1 and data[body : body + 5].lower() == b"exif\0":
                exif.append(data[body + 6 : end])
            elif marker == 0xE1 and _XMP.match(data, body, end):
                xmp.append(data[body:end])
        at = end
    # EXIF of over 64 kB continues in the next segment. Where that is a block of its own, it may be the one read.
    blocks = [b"".join(exif), *exif[1:]]
    return Stripped(data=without(data, dropped), orientation=orientation(blocks, xmp))


def _colors_depend_on(data: bytes, marker: int, body: int, end: int) -> bool:
    return any(marker == kind and end - body >= size and data.startswith(head, body) for kind, head, size in _KEPT)
