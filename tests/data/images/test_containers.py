"""Metadata never decides over pixels: whatever it is, a picture decodes, and is turned as can be read."""

import io
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from blip3o.data.images.containers import image_format, strip
from blip3o.data.images.containers.orientation import exif_orientation, xmp_orientation
from blip3o.data.images.decode import decodable, open_image
from tests.data.pictures import (
    ORIENTATION,
    TYPES,
    chunk,
    entry,
    jpeg_with,
    png_with,
    riff,
    segment,
    tiff,
    turned,
    webp_with,
)
from tests.data.shard_files import UNHURRIED, encode

SIZE = (32, 16)
TURNS = {orientation: Image.Transpose(number) for orientation, number in enumerate((0, 3, 1, 5, 4, 6, 2), start=2)}
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def halves() -> Image.Image:
    """Left half red, right half blue, and a green corner: no turn of it is another."""
    image = Image.new("RGB", SIZE, (220, 30, 30))
    image.paste((30, 30, 220), (16, 0, 32, 16))
    image.paste((30, 220, 30), (0, 0, 8, 8))
    return image


PLAIN = {kind: encode(halves(), kind) for kind in ("JPEG", "PNG", "WEBP")}
PIXELS = {kind: Image.open(io.BytesIO(data)).convert("RGB") for kind, data in PLAIN.items()}


def expected(kind: str, orientation: int) -> np.ndarray:
    stored = PIXELS[kind]
    return np.asarray(stored.transpose(TURNS[orientation]) if orientation in TURNS else stored)


def with_exif(kind: str, block: bytes) -> bytes:
    """A plain picture with an EXIF block."""
    if kind == "JPEG":
        return jpeg_with(PLAIN[kind], segment(0xE1, b"Exif\0\0" + block[:65_000]))
    if kind == "PNG":
        return png_with(PLAIN[kind], chunk(b"eXIf", block))
    return webp_with(PLAIN[kind], *SIZE, riff(b"EXIF", block))


def assert_pixels(data: bytes, kind: str, orientation: int) -> None:
    __tracebackhide__ = True
    assert np.array_equal(np.asarray(open_image(data)), expected(kind, orientation))


# How it is turned.


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", TYPES)
def test_an_orientation_is_read_whatever_its_type(kind, order, big):
    for wanted in range(1, 9):
        values = {5: (wanted, 1), 10: (-2 * wanted, -2), 2: (b"%d\0" % wanted,)}.get(kind, (wanted,))
        for gap in (0, 1, 7):
            block = tiff([entry(ORIENTATION, kind, *values, order=order)], order=order, big=big, gap=gap)
            assert exif_orientation(block) == wanted
            assert exif_orientation(b"Exif\0\0" + block) == wanted


@pytest.mark.parametrize(
    ("tag", "wanted"),
    [
        (entry(ORIENTATION, 3, 6, 3, 1), 6),  # a list: its first
        (entry(ORIENTATION, 7, b"\x08\0\0\0"), 8),  # an integer as raw bytes
        (entry(ORIENTATION, 3, 0), None),
        (entry(ORIENTATION, 3, 9), None),
        (entry(ORIENTATION, 4, 2**32 - 1), None),
        (entry(ORIENTATION, 8, -6), None),
        (entry(ORIENTATION, 5, 6, 0), None),
        (entry(ORIENTATION, 5, 13, 2), None),
        (entry(ORIENTATION, 11, float("nan")), None),
        (entry(ORIENTATION, 12, float("inf")), None),
        (entry(ORIENTATION, 2, b"left"), None),
        (entry(ORIENTATION, 3, 6, count=0), None),
        (entry(ORIENTATION, 3, 6, count=2**31), None),  # as an offset it leads out of the block
        ((ORIENTATION, 99, 1, b"\x06"), None),
        ((ORIENTATION, 5, 1, struct.pack("<I", 2**31)), None),
    ],
)
def test_an_orientation_that_says_nothing_is_none(tag, wanted):
    assert exif_orientation(tiff([tag])) == wanted


def test_of_two_orientations_the_first_that_can_be_read_is_obeyed():
    assert exif_orientation(tiff([entry(ORIENTATION, 3, 77), entry(ORIENTATION, 3, 6), entry(ORIENTATION, 3, 3)])) == 6


@given(block=st.binary(max_size=120), head=st.sampled_from([b"", b"II*\0", b"MM\0*", b"II+\0", b"Exif\0\0MM", b"II"]))
@settings(UNHURRIED, max_examples=400)
def test_no_block_raises(block, head):
    assert exif_orientation(head + block) in (None, *range(1, 9))
    assert xmp_orientation(head + block) is None


@pytest.mark.parametrize("orientation", range(10))
def test_xmp_is_obeyed_where_exif_says_nothing(orientation):
    packet = XMP % orientation
    jpeg = segment(0xE1, b"http" + b"://ns.adobe.com/xap/1.0/\0" + packet)
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + packet
    packed = b"XML:com.adobe.xmp\0\1\0en\0\0" + zlib.compress(packet)
    webp = webp_with(PLAIN["WEBP"], *SIZE, riff(b"XMP ", packet))
    assert_pixels(jpeg_with(PLAIN["JPEG"], jpeg), "JPEG", orientation)
    assert_pixels(jpeg_with(PLAIN["JPEG"], jpeg, segment(0xE1, b"Exif\0\0" + turned(3))), "JPEG", 3)
    assert_pixels(png_with(PLAIN["PNG"], chunk(b"iTXt", text)), "PNG", orientation)
    assert_pixels(png_with(PLAIN["PNG"], after=[chunk(b"iTXt", packed)]), "PNG", orientation)
    assert_pixels(webp, "WEBP", orientation)
    element = b"<tiff:Orientation>%d</tiff:Orientation>" % orientation
    assert xmp_orientation(element) == (orientation if orientation in range(1, 9) else None)


def raw_profile(name: bytes, block: bytes) -> bytes:
    """EXIF as ImageMagick writes it into a text chunk."""
    digits = block.hex().encode()
    lines = b"\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    return b"\n%s\n%8d\n%s\n" % (name, len(block), lines)


@pytest.mark.parametrize(
    "piece",
    [
        chunk(b"tEXt", b"exif\0" + turned(6)),
        chunk(b"tEXt", b"Raw profile type exif\0" + raw_profile(b"exif", b"Exif\0\0" + turned(6))),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw_profile(b"exif", turned(6)))),
        chunk(b"zTXt", b"Raw profile type APP1\0\0" + zlib.compress(raw_profile(b"exif", b"Exif\0\0" + turned(6)))),
        chunk(b"iTXt", b"Raw profile type exif\0\0\0\0\0" + raw_profile(b"exif", turned(6))),
        chunk(b"eXIf", turned(6), off=1),
        chunk(b"eXIf", b"no TIFF") + chunk(b"tEXt", b"exif\0" + turned(6)),
    ],
)
def test_exif_of_a_png_is_read_in_all_its_forms(piece):
    assert_pixels(png_with(PLAIN["PNG"], piece), "PNG", 6)
    assert_pixels(png_with(PLAIN["PNG"], after=[piece]), "PNG", 6)


@pytest.mark.parametrize(
    "piece",
    [
        chunk(b"zTXt", b"Raw profile type exif\0\0" + b"no zlib"),
        chunk(b"zTXt", b"Raw profile type exif\0"),
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  3\nabc"),
        chunk(b"tEXt", b"Raw profile type exif"),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + b"no zlib"),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0"),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1"),
        chunk(b"iTXt", b""),
    ],
)
def test_text_of_a_png_that_cannot_be_read_is_passed_over(piece):
    assert_pixels(png_with(PLAIN["PNG"], piece), "PNG", 1)


def test_exif_of_a_jpeg_goes_on_in_its_next_segment_and_another_block_may_follow():
    long = tiff([entry(0x10E, 2, b"x" * 100_000), entry(ORIENTATION, 3, 6)])
    # The directory comes behind the text here, so the orientation is in the second segment.
    moved = long[:4] + struct.pack("<I", 8 + 100_000) + b"x" * 100_000 + long[8:38]
    parts = [segment(0xE1, b"Exif\0\0" + part) for part in (moved[:65_000], moved[65_000:])]
    assert_pixels(jpeg_with(PLAIN["JPEG"], *parts), "JPEG", 6)
    two = [segment(0xE1, b"Exif\0\0" + block) for block in (b"MM\0*\0\0", turned(8))]
    assert_pixels(jpeg_with(PLAIN["JPEG"], *two), "JPEG", 8)


# What else it says of itself.


def exif_variants(seed: int, count: int):
    """EXIF blocks of an orientation that can be read, and tags of any type with any value before and behind it."""
    chance = random.Random(seed)
    tags = [
        0x10E,
        0x10F,
        0x112,
        0x11A,
        0x11B,
        0x128,
        0x131,
        0x132,
        0x13B,
        0x2BC,
        0x8298,
        0x8769,
        0x8825,
        0x9286,
        0xA005,
    ]
    tags += [0x100, 0x103, 0x111, 0x14A, 0x201, 0x202, 0x83BB, 0x8649, 0x8773, 0x927C, 0xC4A5, 0xFFFF]
    edges = [0, 1, 2, 127, 255]
    for _ in range(count):
        order = chance.choice("<>")
        orientation = chance.randrange(1, 9)
        entries = [entry(ORIENTATION, 3, orientation, order=order)]
        for _ in range(chance.randrange(1, 4)):
            kind = chance.choice(list(TYPES))
            raw = bytes(chance.choice(edges) for _ in range(chance.choice([0, 1, 2, 4, 8, 16, 40])))
            number = chance.choice(
                [len(raw) // max(struct.calcsize("=" + TYPES[kind]), 1), 0, 1, 2, 5, 2**16, 2**32 - 1]
            )
            tag = chance.choice(tags)
            place = 0 if tag != ORIENTATION and chance.random() < 0.5 else len(entries)
            entries.insert(place, (tag, chance.choice([kind, kind, 0, 14, 16, 200]), number, raw))
        block = tiff(entries, order=order)
        yield block[: chance.choice([len(block), len(block), 10 + 12 * len(entries)])], orientation


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kind", "seed"), [("JPEG", 1), ("PNG", 2), ("WEBP", 3)])
def test_no_tag_of_any_type_and_value_costs_a_picture_or_its_turn(kind, seed):
    for block, orientation in exif_variants(seed, 1300):
        assert_pixels(with_exif(kind, block), kind, orientation)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", PLAIN)
def test_no_damage_of_exif_costs_a_picture(kind):
    chance = random.Random(7)
    turns = [expected(kind, orientation) for orientation in range(1, 9)]
    for block, _ in exif_variants(11, 300):
        broken = bytearray(block[: chance.randrange(1, len(block) + 1)])
        for _ in range(chance.randrange(4)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        found = np.asarray(open_image(with_exif(kind, bytes(broken))))
        assert any(np.array_equal(found, turn) for turn in turns)


SIGNATURES = (b"JFIF\0", b"JFXX\0", b"Exif\0\0", b"http" + b"://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"FPXR\0")
SIGNATURES += (
    b"MPF\0MM\0*\0\0\0\x08",
    b"MPF\0",
    b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10",
    b"Adobe",
    b"Ducky",
    b"",
)


@pytest.mark.filterwarnings("error")
def test_no_segment_of_a_jpeg_costs_it():
    chance = random.Random(3)
    for _ in range(1500):
        segments = []
        for _ in range(chance.randrange(1, 4)):
            head, marker = chance.choice(SIGNATURES), chance.choice([*range(0xE0, 0xF0), 0xFE])
            body = (head + chance.randbytes(chance.choice([0, 1, 2, 6, 30])))[: chance.choice([0, 1, 4, 6, 11, 60])]
            if body[:5] in (b"JFIF\0", b"Adobe"):  # whole ones decide over colours, and those of others are removed
                body = body[:11]
            segments.append(
                chance.choice([segment(marker, body), b"\xff" + segment(marker, body), segment(marker, b"")])
            )
        data = jpeg_with(PLAIN["JPEG"], *segments)
        assert_pixels(data, "JPEG", 1)


def test_a_segment_of_no_length_is_an_empty_one():
    assert_pixels(
        jpeg_with(PLAIN["JPEG"], b"\xff\xed\0\0", b"\xff\xe1\0\1", segment(0xE1, b"Exif\0\0" + turned(6))), "JPEG", 6
    )


@pytest.mark.filterwarnings("error")
def test_no_ancillary_chunk_of_a_png_costs_it():
    chance = random.Random(5)
    names = [b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs", b"bKGD", b"hIST", b"tIME"]
    names += [b"eXIf", b"sPLT", b"acTL", b"fcTL", b"fdAT", b"oFFs", b"vpAg", b"caBX", b"iDOT", b"prIV", b"tRNS"]
    heads = [b"", b"icc\0\0", b"Comment\0", b"Comment\0\1", b"XML:com.adobe.xmp\0\1\0\0\0", b"\xff", b"exif\0"]
    for _ in range(1500):
        pieces = []
        for _ in range(chance.randrange(1, 4)):
            name = chance.choice(names)
            body = chance.choice(heads) + chance.randbytes(chance.choice([0, 1, 3, 8, 26, 50]))
            off = 1 if name == b"tRNS" else chance.choice([0, 0, 1])
            pieces.append(chunk(name, body, off=off))
        before = chance.randrange(len(pieces) + 1)
        data = png_with(PLAIN["PNG"], *pieces[:before], after=pieces[before:])
        if pieces[before:]:  # the pixels are whole, though what follows them is cut off
            data = data[: len(data) - chance.choice([0, 0, 13, 14])]
        assert_pixels(data, "PNG", 1)


@pytest.mark.parametrize("name", [b"iCCP", b"zTXt", b"iTXt"])
def test_text_and_profiles_of_any_size_cost_nothing(name):
    head = {b"iCCP": b"wide\0\0", b"zTXt": b"note\0\0", b"iTXt": b"note\0\1\0\0\0"}[name]
    packed = chunk(name, head + zlib.compress(bytes(3 << 20)))
    assert_pixels(png_with(PLAIN["PNG"], *[packed] * 30, after=[packed]), "PNG", 1)
    plain = chunk(b"tEXt", b"note\0" + bytes(5 << 20))
    assert_pixels(png_with(PLAIN["PNG"], plain, after=[chunk(b"eXIf", turned(6))]), "PNG", 6)


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt"])
def test_a_text_that_unpacks_to_much_takes_little_memory(name):
    head = b"Raw profile type exif\0" + {b"zTXt": b"\0", b"iTXt": b"\1\0\0\0"}[name]
    data = png_with(PLAIN["PNG"], chunk(name, head + zlib.compress(bytes(64 << 20))))
    tracemalloc.start()
    strip(data, "PNG")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8 << 20


def test_exif_behind_a_simple_webp_is_read():
    data = PLAIN["WEBP"] + riff(b"EXIF", turned(6))
    assert_pixels(data[:4] + struct.pack("<I", len(data) - 8) + data[8:], "WEBP", 6)


@pytest.mark.filterwarnings("error")
def test_no_chunk_of_a_webp_beside_its_pixels_costs_it():
    chance = random.Random(9)
    turns = {b"EXIF": {6: turned(6), 3: b"Exif\0\0" + turned(3)}, b"XMP ": {8: XMP % 8}, b"ICCP": {}, b"abcd": {}}
    for _ in range(500):
        said: list[tuple[bytes, int]] = []
        pieces = []
        for _ in range(chance.randrange(4)):
            name = chance.choice(list(turns))
            orientation = chance.choice([*turns[name], 0])
            body = turns[name].get(orientation, chance.choice([b"", b"Exif\0\0", b"no TIFF", b"II*\0\xff\xff\xff\xff"]))
            pieces.append(riff(name, body + chance.randbytes(chance.choice([0, 1, 9]))))
            said += [(name, orientation)] if orientation else []
        if chance.random() < 0.3:  # cut off, or longer than the file
            pieces.append(riff(chance.choice([b"EXIF", b"XMP "]), b"cut", size=chance.choice([4, 900, 2**32 - 1])))
        claimed = chance.choice([0, 0, 1, 7, 2**20])
        data = webp_with(PLAIN["WEBP"], *SIZE, *pieces, flags=chance.choice([0, 0x2C, 0x08, 0x04]), claimed=claimed)
        assert_pixels(data, "WEBP", min(said, key=lambda one: one[0], default=(b"", 1))[1])


# What is well-formed is decoded as ever.


def by_pillow(data: bytes) -> np.ndarray:
    """Upright and on white, as Pillow's own functions do it."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I;16"):
        return np.asarray(Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB"))
    pixels = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB"))


def in_mode(mode: str) -> Image.Image:
    noise = np.random.default_rng(1).integers(0, 256, (21, 34, 4), np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise[..., :2].copy().view(np.uint16)[..., 0])
    return Image.fromarray(noise, "RGBA").convert(mode)


WELL_FORMED = [
    *[("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
    *[("PNG", "P", {"transparency": value}) for value in (3, bytes(range(256)), b"\xff\0", b"\x10")],
    ("PNG", "L", {"transparency": 130}),
    *[("JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")],
    *[("JPEG", "RGB", options) for options in ({"progressive": True}, {"dpi": (72, 72)}, {"comment": b"a note"})],
    *[("WEBP", mode, {"lossless": lossless}) for mode in ("L", "RGB", "RGBA") for lossless in (True, False)],
]


@pytest.mark.parametrize(("kind", "mode", "options"), WELL_FORMED)
def test_pixels_are_those_of_pillow(kind, mode, options):
    image = in_mode(mode)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif.update({ORIENTATION: orientation, 0x10E: "a text", 0x11A: 72.0, 0x128: 2})
        data = encode(image, kind, exif=exif, icc_profile=b"p" * 500, **options)
        assert np.array_equal(np.asarray(open_image(data)), by_pillow(data))
    assert np.array_equal(
        np.asarray(open_image(encode(image, kind, **options))), by_pillow(encode(image, kind, **options))
    )


def test_pixels_turned_by_xmp_are_those_of_pillow():
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", (XMP % 6).decode())
    for kind, options in {"JPEG": {"xmp": XMP % 6}, "WEBP": {"xmp": XMP % 6}, "PNG": {"pnginfo": info}}.items():
        data = encode(halves(), kind, **options)
        assert np.array_equal(np.asarray(open_image(data)), by_pillow(data))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "MPO", "AVIF"])
def test_of_several_frames_the_first_is_taken(kind):
    data = encode(halves(), kind, save_all=True, append_images=[halves().rotate(180)] * 3)
    found = np.asarray(open_image(data, formats=("JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF")), int)
    assert np.abs(found - np.asarray(halves())).mean() < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_without_metadata_is_not_copied(kind):
    assert strip(PLAIN[kind], kind).data is PLAIN[kind]
    assert len(strip(with_exif(kind, turned(6)), kind).data) <= len(PLAIN[kind]) + 18


# Formats beyond those of training sets.


def tiff_of(*entries, order="<") -> bytes:
    """An uncompressed TIFF of the halves with further tags."""
    width, height = SIZE
    pixels = halves().tobytes()
    needed = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 2), (273, 4, 8), (277, 3, 3)]
    needed += [(278, 4, height), (279, 4, len(pixels))]
    tags = sorted([*(entry(*one, order=order) for one in needed), *entries])
    tags[2] = entry(258, 3, 8, 8, 8, order=order)
    data = tiff(tags, order=order, gap=len(pixels))
    return data[:8] + pixels + data[8 + len(pixels) :]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("order", ["<", ">"])
def test_no_tag_of_a_tiff_costs_it_or_its_turn(order):
    chance = random.Random(13)
    for orientation in range(10):
        turn = entry(ORIENTATION, 3, orientation, order=order)
        stored = halves().transpose(TURNS[orientation]) if orientation in TURNS else halves()
        for _ in range(20):
            kind, tag = (
                chance.choice(list(TYPES)),
                chance.choice([270, 271, 282, 283, 296, 305, 330, 700, 34665, 34853, 37724]),
            )
            odd = (tag, kind, chance.choice([0, 1, 2, 2**32 - 1]), chance.randbytes(chance.choice([0, 4, 8])))
            data = tiff_of(turn, odd, order=order)
            assert image_format(data) == "TIFF"
            assert np.array_equal(np.asarray(open_image(data, formats=["TIFF"])), np.asarray(stored))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_of_any_compression_is_turned(compression, orientation):
    data = encode(halves(), "TIFF", compression=compression, tiffinfo={ORIENTATION: orientation})
    assert np.array_equal(np.asarray(open_image(data, formats=["TIFF"])), by_pillow(data))


@pytest.mark.skipif(not decodable("AVIF"), reason="this Pillow reads no AVIF")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_turned_by_its_own_boxes_whatever_its_exif(orientation):
    exif = Image.Exif()
    exif.update({ORIENTATION: orientation, 0x10E: "AAAABBBB"})
    data = encode(halves(), "AVIF", exif=exif, quality=100, subsampling="4:4:4")
    # The text becomes a rational, which Pillow cannot write again.
    text, rational = b"\x01\x0e\0\2\0\0\0\x09", b"\x01\x0e\0\5\0\0\0\1"
    assert data.count(text) == 1
    for written in (data, data.replace(text, rational)):
        assert np.array_equal(np.asarray(open_image(written, formats=["AVIF"])), by_pillow(data))


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WEBP"),
        (b"RIFF\0\0\0\0WAVEfmt ", None),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp41", None),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"MM\0+\0\x08\0\0", "TIFF"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
        (b"8BPS\0\1", "PSD"),
        (b"BM are two letters of text", None),
        (b"<svg>", None),
        (b"", None),
    ],
)
def test_magic_bytes_name_the_format(head, kind):
    assert image_format(head) == kind
