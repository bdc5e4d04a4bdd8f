"""PNG without its metadata: https://www.w3.org/TR/png-3/."""

import re
import zlib
from dataclasses import dataclass, field

from blip3o.data.images.containers.orientation import orientation
from blip3o.data.images.containers.parts import Span, Stripped, without

_GREY, _RGB, _PALETTE = 0, 2, 3
_MAX_PALETTE = 256
_MAX_TEXT = 1 << 20  # bytes of a compressed text that are unpacked at most; EXIF comes first in it
_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")
_RAW_PROFILE = re.compile(rb"\s*\w+\s+\d+\s+([0-9a-fA-F\s]*)")  # its name, its length, its bytes
_XMP = b"XML:com.adobe.xmp"


@dataclass(frozen=True, slots=True)
class _Chunk:
    name: bytes
    body: bytes
    sound: bool  # its checksum is right


@dataclass(slots=True)
class _Found:
    """What the chunks have said so far."""

    depth: int = 0
    color: int = -1
    transparent: tuple[int, ...] = ()
    exif: list[bytes] = field(default_factory=list)
    profiles: list[bytes] = field(default_factory=list)
    xmp: list[bytes] = field(default_factory=list)


def strip_png(data: bytes) -> Stripped:
    """Without ancillary chunks, but for the transparency of a palette; the frames of an animation are such chunks.

    A wrong checksum of a chunk that is left out is no damage. Transparency with a wrong one is ignored, as libpng does.
    """
    found = _Found()
    dropped: list[Span] = []
    at = 8
    while at + 8 <= len(data):
        name, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if not name.isalpha() or name == b"IEND":
            break
        if name != b"IDAT" and not _kept(_chunk(data, at, end), found):
            dropped.append((at, min(end, len(data))))
        at = end
    return Stripped(
        data=without(data, dropped),
        orientation=orientation([*found.exif, *found.profiles], found.xmp),
        transparent=found.transparent,
        wide=found.depth == 16,
    )


def _chunk(data: bytes, at: int, end: int) -> _Chunk:
    return _Chunk(
        name=data[at + 4 : at + 8],
        body=data[at + 8 : end - 4],
        sound=zlib.crc32(memoryview(data)[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big"),
    )


def _kept(chunk: _Chunk, found: _Found) -> bool:
    """Notes what a chunk says, and whether the decoder needs it."""
    if chunk.name == b"IHDR":
        found.depth, found.color = (int.from_bytes(chunk.body[place : place + 1], "big") for place in (8, 9))
    if chunk.name == b"PLTE":  # of other pictures a suggestion
        return found.color == _PALETTE
    if chunk.name == b"tRNS" and chunk.sound:
        found.transparent = _transparent(chunk.body, found)
        return found.color == _PALETTE and 0 < len(chunk.body) <= _MAX_PALETTE
    _note(chunk, found)
    return chunk.name[:1].isupper()


def _transparent(body: bytes, found: _Found) -> tuple[int, ...]:
    """The transparent colour as the decoder scales samples. Bits beyond the depth of a sample do not count."""
    samples = {_GREY: 1, _RGB: 3}.get(found.color, 0)
    if len(body) < 2 * samples or found.depth not in (1, 2, 4, 8, 16):
        return ()
    top = 2**found.depth - 1
    scale = 1 if found.depth == 16 else 255 // top
    return tuple((int.from_bytes(body[2 * n : 2 * n + 2], "big") & top) * scale for n in range(samples))


def _note(chunk: _Chunk, found: _Found) -> None:
    """Keeps EXIF and XMP, in the forms in which tools put them into a PNG."""
    if chunk.name == b"eXIf":
        found.exif.append(chunk.body)
    elif chunk.name in (b"tEXt", b"zTXt", b"iTXt"):
        keyword, _, rest = chunk.body[:80].partition(b"\0")
        if keyword == b"exif":
            found.exif.append(_text(chunk))
        elif keyword in _PROFILES and (profile := _RAW_PROFILE.match(_text(chunk))):
            digits = b"".join(profile[1].split())
            found.profiles.append(bytes.fromhex(digits[: len(digits) // 2 * 2].decode()))
        elif keyword == _XMP:
            found.xmp.append(_text(chunk))


def _text(chunk: _Chunk) -> bytes:
    """The text of a chunk of one of the three kinds; none where it cannot be unpacked."""
    rest = chunk.body.partition(b"\0")[2]
    if chunk.name == b"tEXt":
        return rest
    if chunk.name == b"zTXt":
        return _unpacked(rest[1:])
    language, _, text = rest[2:].partition(b"\0")
    text = text.partition(b"\0")[2]
    return _unpacked(text) if rest[:1] not in (b"", b"\0") else text


def _unpacked(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MAX_TEXT)
    except zlib.error:
        return b""
