"""Image files as containers: what their first bytes say they are, which parts affect the pixels, and the rest.

A decoder that reads EXIF, text, colour profiles and resolutions can fail on each of them, and needs none of them. So it
gets the file without them: `strip` keeps what decides over pixels, and reads what else is wanted: how the picture is
turned, and the colour of a PNG that stands for transparency. Nothing in this package raises, whatever the bytes; what
cannot be parsed is left for the decoder to judge. `blip3o.data.images.decode` and the import of folders call it.
"""

from blip3o.data.images.containers.formats import image_format, strip
from blip3o.data.images.containers.parts import Stripped

__all__ = ["Stripped", "image_format", "strip"]
