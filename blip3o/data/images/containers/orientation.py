"""How a picture must be turned, read from untrusted EXIF and XMP blocks.

Only the orientation is read, and no bytes raise: cameras, editors and upload sites write EXIF with wrong types, counts
and pointers, and a picture is worth more than what it says about itself.
"""

import re
import struct
from collections.abc import Iterable
from typing import Literal

UPRIGHT = 1
# Numbers of the EXIF standard: the tag, and its types by the codes of `struct` (of two, a rational).
TAG = 0x0112
_NUMBERS = {1: "B", 3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I", 16: "Q"}
_TEXT, _UNDEFINED = 2, 7
_BIG_TIFF = 43
_MAX_TAGS = 1 << 16
_XMP = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])\b")


def orientation(exif: Iterable[bytes], xmp: Iterable[bytes] = ()) -> int:
    """The first orientation, 1 to 8 as EXIF counts them, that can be read out of some blocks; 1 where none can be.

    EXIF blocks come before XMP packets, as in Pillow.
    """
    found = [*map(exif_orientation, exif), *map(xmp_orientation, xmp)]
    return next((value for value in found if value is not None), UPRIGHT)


def exif_orientation(block: bytes) -> int | None:
    """The orientation in the first directory of an EXIF block or a TIFF file, if it can be read."""
    directory = Directory.of(block)
    if directory is None:
        return None
    found = (directory.number_at(entry) for entry in directory.entries if directory.tag_at(entry) == TAG)
    return next((int(value) for value in found if value is not None and value in range(1, 9)), None)


def xmp_orientation(packet: bytes) -> int | None:
    """The orientation in an XMP packet, if there is one."""
    found = _XMP.search(packet)
    return int(found[1]) if found else None


class Directory:
    """The first directory of a TIFF structure: where its entries lie, and what is in them.

    Slices past the end of the block are short or empty, and their numbers small or 0, so nothing here raises.
    """

    def __init__(self, block: bytes, order: Literal["little", "big"]) -> None:
        """Takes a block whose first two bytes name its byte order."""
        self.block = block
        self.order = order
        self.big = self._integer(2, 2) == _BIG_TIFF
        # Bytes of a count or an offset in an entry, of an entry, and of the number of entries.
        self.word, self.step, head = (8, 20, 8) if self.big else (4, 12, 2)
        start = self._integer(self.word, self.word)
        self.start = start + head
        self.count = min(self._integer(start, head), _MAX_TAGS, max(len(block) - self.start, 0) // self.step)

    @classmethod
    def of(cls, block: bytes) -> "Directory | None":
        """The directory of a block, which may begin as the segment of a JPEG does; None if it is no TIFF structure."""
        tiff = block.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")
        if tiff[:2] == b"II":
            return cls(tiff, "little")
        return cls(tiff, "big") if tiff[:2] == b"MM" else None

    @property
    def entries(self) -> range:
        """Offsets of the entries that lie wholly in the block."""
        return range(self.start, self.start + self.count * self.step, self.step)

    def tag_at(self, entry: int) -> int:
        """The tag of the entry at an offset."""
        return self._integer(entry, 2)

    def number_at(self, entry: int) -> float | None:
        """The first number in the value of an entry, whatever its type says it is; None if there is none."""
        kind, count = self._integer(entry + 2, 2), self._integer(entry + 4, self.word)
        size = struct.calcsize("=" + _NUMBERS.get(kind, "B"))
        place = entry + 4 + self.word
        if count * size > self.word:
            place = self._integer(place, self.word)
        if count == 0:
            return None
        if kind in (_TEXT, _UNDEFINED):
            raw = self.block[place : place + min(count, 8)]
            text = raw.strip(b"\0 ")
            return int(text) if text.isdigit() else int.from_bytes(raw, self.order)
        return self._number(self.block[place : place + size], kind)

    def _number(self, raw: bytes, kind: int) -> float | None:
        code = ("<" if self.order == "little" else ">") + _NUMBERS.get(kind, "")
        if kind not in _NUMBERS or len(raw) < struct.calcsize(code):
            return None
        over, under = (*struct.unpack(code, raw), 1)[:2]
        return over / under if under else None

    def _integer(self, at: int, size: int) -> int:
        return int.from_bytes(self.block[at : at + size], self.order)
