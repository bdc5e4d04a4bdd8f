"""TIFF without its metadata: the tags that do not affect pixels, and the pages after the first. TIFF 6.0, BigTIFF."""

from blip3o.data.images.containers.orientation import UPRIGHT, Directory, exif_orientation
from blip3o.data.images.containers.parts import Stripped

_SIZE_AND_SAMPLES = (256, 257, 258, 262, 277, 284, 338, 339)
_COMPRESSION = (259, 266, 292, 293, 317, 347, *range(512, 522), 50674)
_STRIPS_AND_TILES = (273, 278, 279, 322, 323, 324, 325)
_COLORS = (320, 332, 334, 529, 530, 531, 532)
_KEPT = {*_SIZE_AND_SAMPLES, *_COMPRESSION, *_STRIPS_AND_TILES, *_COLORS}
_MIN_START = 8  # the header comes before it


def strip_tiff(data: bytes) -> Stripped:
    """With a first directory of the tags that pixels are decoded by, and no second one."""
    directory = Directory.of(data)
    if directory is None or directory.start < _MIN_START:
        return Stripped(data=data)
    entries = [data[entry : entry + directory.step] for entry in directory.entries if directory.tag_at(entry) in _KEPT]
    written = b"".join(entries) + bytes(directory.word)
    head = 8 if directory.big else 2
    out = bytearray(data)
    out[directory.start - head : directory.start] = len(entries).to_bytes(head, directory.order)
    out[directory.start : directory.start + len(written)] = written
    return Stripped(data=bytes(out), orientation=exif_orientation(data) or UPRIGHT)
