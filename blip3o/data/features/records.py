"""A feature as stored: a record of fixed size, so that sample `row` lies at a place that needs no index.

A record is the features [N, F] of one image in one of four forms, then the CRC-32 of those bytes:

- `fp32`, `bf16`, `fp16`: the numbers themselves, little-endian. What an encoder computes in bf16 is kept whole by bf16.
- `int8`: for each channel a scale (fp32: the largest magnitude over the image's tokens, divided by 127), then the
  numbers in units of it. Scales are per image and channel because a few channels of EVA's features are far larger than
  the rest; those of 1,792 channels are 6 % of a record of 64 tokens.

An image that could not be encoded has an absent record: zeros, and the complement of their CRC-32.

Legend: B records, N tokens, F channels.
"""

import functools
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from blip3o.errors import DataError

FeatureDtype = Literal["fp32", "bf16", "fp16", "int8"]

CRC_BYTES = 4
_SCALE_BYTES = 4
_ITEM_BYTES: dict[FeatureDtype, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
_LEVELS = 127


@dataclass(frozen=True, kw_only=True)
class RecordFormat:
    """Form and shape of every record of a cache."""

    dtype: FeatureDtype
    tokens: int
    channels: int

    @property
    def payload_bytes(self) -> int:
        """Bytes of the features, with their scales."""
        scales = _SCALE_BYTES * self.channels if self.dtype == "int8" else 0
        return scales + _ITEM_BYTES[self.dtype] * self.tokens * self.channels

    @property
    def record_bytes(self) -> int:
        """Bytes of a record."""
        return self.payload_bytes + CRC_BYTES

    @functools.cached_property
    def absent(self) -> bytes:
        """The record of an image that has no features."""
        zeros = bytes(self.payload_bytes)
        return zeros + (zlib.crc32(zeros) ^ 0xFFFFFFFF).to_bytes(CRC_BYTES, "little")

    def pack(self, features_NF: np.ndarray) -> bytes:
        """Features float32 [N, F] → a record.

        Raises `DataError` if the shape is another, a number is not finite, or one is too large for fp16.
        """
        if features_NF.shape != (self.tokens, self.channels):
            raise DataError(f"features have shape {features_NF.shape}, records hold {(self.tokens, self.channels)}")
        if not np.isfinite(features_NF).all():
            raise DataError("features hold a number that is not finite: look at the encoder's weights")
        payload = _packed(features_NF.astype(np.float32, copy=False), self.dtype)
        return payload + zlib.crc32(payload).to_bytes(CRC_BYTES, "little")

    def unpack(self, record: bytes) -> np.ndarray | None:
        """A record → its features [N, F]; None if it is an absent one. Not checked: see `is_whole`.

        They are float32, float16 (`fp16`) or, NumPy having no such type, the bits of bfloat16 as uint16 (`bf16`).
        """
        if record == self.absent:
            return None
        shape = (self.tokens, self.channels)
        match self.dtype:
            case "fp32":
                return np.frombuffer(record, "<f4", count=self.tokens * self.channels).reshape(shape)
            case "bf16":
                return np.frombuffer(record, "<u2", count=self.tokens * self.channels).reshape(shape)
            case "fp16":
                return np.frombuffer(record, "<f2", count=self.tokens * self.channels).reshape(shape)
            case "int8":
                scale = np.frombuffer(record, "<f4", count=self.channels)
                levels = np.frombuffer(record, "i1", count=self.tokens * self.channels, offset=scale.nbytes)
                return levels.reshape(shape) * scale

    def is_whole(self, record: bytes) -> bool:
        """Whether a record is one that `pack` made, or the absent one, bit for bit."""
        if len(record) != self.record_bytes:
            return False
        crc = int.from_bytes(record[self.payload_bytes :], "little")
        return crc == zlib.crc32(record[: self.payload_bytes]) or record == self.absent


def _packed(features_NF: np.ndarray, dtype: FeatureDtype) -> bytes:
    match dtype:
        case "fp32":
            return features_NF.astype("<f4").tobytes()
        case "bf16":
            return to_bf16_bits(features_NF).astype("<u2").tobytes()
        case "fp16":
            largest = float(np.abs(features_NF).max())
            if largest > float(np.finfo(np.float16).max):
                raise DataError(f"a feature of {largest:g} is too large for fp16: set data.feature_dtype=bf16")
            return features_NF.astype("<f2").tobytes()
        case "int8":
            scale = (np.abs(features_NF).max(0) / _LEVELS).astype("<f4")
            # A channel of zeros, or of magnitudes that vanish in fp32 when divided, has scale 0 and is kept as zeros.
            levels = np.divide(features_NF, scale, out=np.zeros_like(features_NF), where=scale > 0)
            return scale.tobytes() + np.clip(np.rint(levels), -_LEVELS, _LEVELS).astype("i1").tobytes()


def to_bf16_bits(values: np.ndarray) -> np.ndarray:
    """float32 → bfloat16 as uint16 bits, rounded to nearest, ties to even, as torch does; for finite numbers."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_float(features: np.ndarray) -> np.ndarray:
    """What `unpack` gave, in any of its three types, as float32."""
    if features.dtype == np.uint16:
        return (features.astype(np.uint32) << 16).view(np.float32)
    return features.astype(np.float32)


@dataclass
class StoredError:
    """How far stored features are from the computed ones, over all records so far."""

    _error: float = 0.0
    _power: float = 0.0
    largest: float = 0.0

    def add(self, computed: np.ndarray, stored: np.ndarray) -> None:
        """Takes the features of one image as computed and as `unpack` gives them back."""
        difference = to_float(stored).astype(np.float64) - computed
        self._error += float(np.square(difference).sum())
        self._power += float(np.square(computed, dtype=np.float64).sum())
        self.largest = max(self.largest, float(np.abs(difference).max()))

    @property
    def relative(self) -> float:
        """Root of the mean square error over that of the features themselves; 0 where there is nothing."""
        return (self._error / self._power) ** 0.5 if self._power else 0.0
