"""WebP without its metadata: RFC 9649."""

from blip3o.data.images.containers.orientation import orientation
from blip3o.data.images.containers.parts import Span, Stripped, without

_HEAD = 12  # "RIFF", the size of what follows it, "WEBP"
_PIXELS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")


def strip_webp(data: bytes) -> Stripped:
    """Without EXIF, XMP, colour profile and unknown chunks, and with the size that is then right.

    Where a chunk of pixels is truncated, nothing is left out: that is for the decoder to find.
    """
    dropped: list[Span] = []
    exif: list[bytes] = []
    xmp: list[bytes] = []
    claimed = 8 + int.from_bytes(data[4:8], "little")
    limit = min(claimed, len(data))
    at = _HEAD
    while at + 8 <= limit:
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + size + size % 2
        if name not in _PIXELS:
            dropped.append((at, min(end, limit)))
            {b"EXIF": exif, b"XMP ": xmp}.get(name, []).append(data[at + 8 : min(at + 8 + size, limit)])
        elif end - size % 2 > limit:
            return Stripped(data=data, orientation=orientation(exif, xmp))
        at = end
    if dropped or limit < claimed:
        data = without(data[:limit], dropped)
        data = data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:]
    return Stripped(data=data, orientation=orientation(exif, xmp))
