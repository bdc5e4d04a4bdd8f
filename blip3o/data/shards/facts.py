"""What indexing records of a good sample besides its location: sizes, a perceptual hash, a checksum, plain fields.

Selections, `blip3o data inspect` and `jobs.index --verify` work from these only, without reading shards again.
"""

import json
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

MAX_FIELDS = 32
MAX_FIELD_CHARS = 64
_SIDE, _KEPT = 32, 8
# Rows of the DCT-II for the lowest frequencies.
_DCT = np.cos(np.pi * np.arange(_KEPT)[:, None] * (2 * np.arange(_SIDE) + 1) / (2 * _SIDE))


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleFacts:
    """Facts of one sample; zeros and `{}` for a damaged one.

    `width` and `height` are pixels of the upright picture, `caption_chars` the length of the caption as it is trained
    on, `phash` as `perceptual_hash`, `crc32` that of the bytes of image, caption and record one after another, `fields`
    as `scalar_fields`.
    """

    width: int = 0
    height: int = 0
    caption_chars: int = 0
    phash: int = 0
    crc32: int = 0
    fields: str = "{}"


def perceptual_hash(image: Image.Image) -> int:
    """64 bits (as a signed integer) that differ in few places for pictures that look alike.

    Signs of the 8×8 lowest frequencies of the picture at 32×32 in grey, about their median (the DCT hash of C. Zauner,
    "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010). Coefficients are rounded to whole
    numbers first, so that the last bits of arithmetic do not matter.
    """
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float64)
    coefficients = np.rint(_DCT @ grey @ _DCT.T).ravel()
    bits = np.packbits(coefficients > np.median(coefficients[1:]))
    return int.from_bytes(bits.tobytes(), "big", signed=True)


def scalar_fields(record: dict[str, Any]) -> str:
    """JSON object of a record's numbers, booleans and short strings at top level, the first `MAX_FIELDS` of them."""
    scalars = [(name, value) for name, value in record.items() if len(name) <= MAX_FIELD_CHARS and _is_scalar(value)]
    return json.dumps(dict(scalars[:MAX_FIELDS]))


def _is_scalar(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_FIELD_CHARS
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and abs(value) < 2**63


def checksum(*parts: bytes) -> int:
    """CRC-32 of some bytes one after another."""
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value
