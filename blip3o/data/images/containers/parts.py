"""What stripping a file gives, and how bytes are left out of one."""

from collections.abc import Iterable
from dataclasses import dataclass

from blip3o.data.images.containers.orientation import UPRIGHT

Span = tuple[int, int]  # offsets of the first byte and of the one after the last


@dataclass(frozen=True, kw_only=True, slots=True)
class Stripped:
    """A file as its decoder gets it, and what was read out of the rest of it.

    `orientation` counts as EXIF does. `transparent` is the colour of a grey (one number) or RGB (three) PNG that stands
    for transparency, on the scale of its decoded samples: 0 to 255, or 0 to 65535 where `wide` (16 bits a sample).
    """

    data: bytes
    orientation: int = UPRIGHT
    transparent: tuple[int, ...] = ()
    wide: bool = False


def without(data: bytes, spans: Iterable[Span]) -> bytes:
    """The bytes outside of some spans, which are in order and do not overlap; `data` itself if there are none."""
    view, pieces, at = memoryview(data), [], 0
    for start, end in spans:
        pieces.append(view[at:start])
        at = end
    return b"".join([*pieces, view[at:]]) if pieces else data
