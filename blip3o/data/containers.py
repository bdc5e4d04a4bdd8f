"""What the first bytes of a file say that it is. No pixel is decoded here, and no bytes raise."""

# A BMP is told from text that begins with "BM" by the size of its second header.
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_MAGIC = (
    ("JPEG", b"\xff\xd8\xff"),
    ("PNG", b"\x89PNG\r\n\x1a\n"),
    ("GIF", b"GIF87a"),
    ("GIF", b"GIF89a"),
    ("TIFF", b"II*\0"),
    ("TIFF", b"MM\0*"),
    ("TIFF", b"II+\0"),  # BigTIFF
    ("TIFF", b"MM\0+"),
    ("JPEG2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
    ("JPEG2000", b"\xff\x4f\xff\x51"),
    ("JXL", b"\0\0\0\x0cJXL \r\n\x87\n"),
    ("JXL", b"\xff\x0a"),
    ("PSD", b"8BPS"),
    ("ICO", b"\0\0\1\0"),
)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


def image_format(data: bytes) -> str | None:
    """The image format that the magic bytes of a file name, whether or not it can be decoded; None for anything else.

    Known: JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, HEIC, JPEG2000, JXL, PSD, ICO. The first 64 bytes are enough.
    """
    for kind, magic in _MAGIC:
        if data.startswith(magic):
            return kind
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if data[4:8] == b"ftyp":
        return _iso_format(data)
    return None


def _iso_format(data: bytes) -> str | None:
    """AVIF or HEIC by the brands of a file of ISO boxes; None for films and the like."""
    end = min(int.from_bytes(data[:4], "big"), 64)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIC" if brands & _HEIC_BRANDS else None
