"""Pictures with metadata of any kind, right or wrong, written byte by byte: no encoder would write them."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

PNG = b"\x89PNG\r\n\x1a\n"
# EXIF's types by number, with the code of `struct` for one value.
TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I"}
ORIENTATION = 0x0112

Entry = tuple[int, int, int, bytes]  # tag, type, count, value


def entry(tag: int, kind: int, *values: float | bytes, order: str = "<", count: int | None = None) -> Entry:
    """A tag whose value is packed as its type says; `count` overrides how many there are said to be."""
    code = TYPES[kind]
    if code == "s":
        raw = b"".join(value if isinstance(value, bytes) else bytes([value]) for value in values)
        return tag, kind, len(raw) if count is None else count, raw
    step = len(code)
    raw = b"".join(struct.pack(order + code, *values[at : at + step]) for at in range(0, len(values), step))
    return tag, kind, len(values) // step if count is None else count, raw


def tiff(entries: Sequence[Entry], *, order: str = "<", big: bool = False, gap: int = 0) -> bytes:
    """A TIFF structure of one directory, `gap` bytes behind its header; long values follow the directory."""
    word, entry_head, count = ("Q", order + "HHQ", "Q") if big else ("I", order + "HHI", "H")
    size, head = struct.calcsize(order + word), (16 if big else 8)
    start = head + gap
    tail = start + struct.calcsize(order + count) + len(entries) * (size * 2 + 4) + size
    directory, far = struct.pack(order + count, len(entries)), b""
    for tag, kind, number, raw in entries:
        value = raw.ljust(size, b"\0")
        if len(raw) > size:
            value, far = struct.pack(order + word, tail + len(far)), far + raw
        directory += struct.pack(entry_head, tag, kind, number) + value
    magic = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    magic += struct.pack(order + "HH", 8, 0) if big else b""
    return magic + struct.pack(order + word, start) + bytes(gap) + directory + bytes(size) + far


def turned(orientation: int, *others: Entry, order: str = "<") -> bytes:
    """EXIF of an orientation and of other tags before it."""
    return tiff([*others, entry(ORIENTATION, 3, orientation, order=order)], order=order)


def segment(marker: int, body: bytes) -> bytes:
    """A JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_with(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments (or whatever else) before all others."""
    return data[:2] + b"".join(segments) + data[2:]


def chunk(name: bytes, body: bytes, *, off: int = 0) -> bytes:
    """A PNG chunk whose checksum is right, or `off` by a number."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", (zlib.crc32(name + body) + off) % 2**32)


def png_with(data: bytes, *chunks: bytes, after: Sequence[bytes] = ()) -> bytes:
    """A PNG with chunks behind its header, and `after` its pixels."""
    start, end = len(PNG) + 25, len(data) - 12
    return data[:start] + b"".join(chunks) + data[start:end] + b"".join(after) + data[end:]


def png_of(
    samples: np.ndarray, depth: int, color: int, *chunks: bytes, interlaced: bool = False, after: Sequence[bytes] = ()
) -> bytes:
    """A PNG of samples [H, W, channels] below 2**depth, with chunks before its pixels and behind them."""
    high, wide = samples.shape[:2]
    passes = [(slice(None), slice(None))]
    if interlaced:  # Adam7: (first row, step), (first column, step)
        grid = [((0, 8), (0, 8)), ((0, 8), (4, 8)), ((4, 8), (0, 4)), ((0, 4), (2, 4)), ((2, 4), (0, 2))]
        grid += [((0, 2), (1, 2)), ((1, 2), (0, 1))]
        passes = [(slice(row, None, down), slice(column, None, right)) for (row, down), (column, right) in grid]
    rows = b"".join(b"\0" + _row(row, depth) for place in passes for row in samples[place] if row.size)
    header = struct.pack(">IIBBBBB", wide, high, depth, color, 0, 0, int(interlaced))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return PNG + chunk(b"IHDR", header) + b"".join(chunks) + pixels + b"".join(after) + chunk(b"IEND", b"")


def _row(row: np.ndarray, depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    bits = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - depth :]
    return np.packbits(bits.reshape(-1)).tobytes()


def riff(name: bytes, body: bytes, *, size: int | None = None) -> bytes:
    """A WebP chunk, padded to an even length; `size` overrides what it says of its length."""
    return name + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def webp_with(data: bytes, width: int, height: int, *chunks: bytes, flags: int = 0x2C, claimed: int = 0) -> bytes:
    """A simple WebP as an extended one, with chunks behind its pixels, and a file size that is off by `claimed`."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + riff(b"VP8X", bytes([flags, 0, 0, 0]) + sides) + data[12:] + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) + claimed) + body
