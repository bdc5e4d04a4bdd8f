"""Images come out upright, on white, and as resizing and cropping would give them; damaged ones raise one error."""

import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blip3o.config.model import ResizeConfig
from blip3o.data.images.containers import image_format
from blip3o.data.images.decode import MAX_PIXELS, decodable, decode_image, decode_views, open_image, to_square
from blip3o.data.shards.damage import DamagedSampleError
from tests.data.pictures import chunk, entry, png_of, tiff
from tests.data.shard_files import UNHURRIED, encode, png_bomb

FORMATS = ["PNG", "JPEG", "WEBP"]


def smooth(width: int, height: int) -> Image.Image:
    """An image that a lossy format keeps well, with a corner of its own."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(np.uint8)
    return Image.fromarray(pixels)


def resample_rows(pixels: np.ndarray, length: int, kernel, support: float) -> np.ndarray:
    """[n, w, 3] uint8 → [n, length, 3]: each pixel a normalised, antialiased sum, rounded to a byte.

    The sums are Pillow's, in fixed point of 22 bits: in real numbers a sum that is nearly a half may round otherwise.
    """
    scale = pixels.shape[1] / length
    widening = max(scale, 1.0)
    out = np.empty((pixels.shape[0], length, 3), np.int64)
    for i in range(length):
        centre = (i + 0.5) * scale
        low = max(int(centre - support * widening + 0.5), 0)
        high = min(int(centre + support * widening + 0.5), pixels.shape[1])
        weights = kernel((np.arange(low, high) + 0.5 - centre) / widening)
        fixed = np.trunc(weights / weights.sum() * 2**22 + np.copysign(0.5, weights)).astype(np.int64)
        out[:, i] = np.tensordot(fixed, pixels[:, low:high].astype(np.int64), (0, 1))
    return np.clip((out + 2**21) >> 22, 0, 255).astype(np.uint8)


def bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = −0.5."""
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))


def triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def scaled(pixels: np.ndarray, width: int, height: int, kernel, support: float) -> np.ndarray:
    """Rows first, then columns."""
    wide = resample_rows(pixels, width, kernel, support)
    return resample_rows(wide.transpose(1, 0, 2), height, kernel, support).transpose(1, 0, 2)


@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 40), seed=st.integers(0, 9))
@settings(UNHURRIED, max_examples=40)
def test_a_square_is_the_centre_of_the_scaled_image(width, height, size, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    short = min(width, height)
    wide, high = size * width // short, size * height // short
    left, top = round((wide - size) / 2), round((high - size) / 2)
    expected = scaled(pixels, wide, high, bicubic, 2.0)[top : top + size, left : left + size]
    assert np.array_equal(to_square(Image.fromarray(pixels), size), expected)


def test_448_pixels_of_a_portrait_are_those_of_two_whole_passes():
    # Pillow 13 alone would take the columns first here, and differ by tens of levels.
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (640, 480, 3), np.uint8))
    rows_first = image.resize((448, 640), Image.Resampling.BICUBIC).resize((448, 597), Image.Resampling.BICUBIC)
    assert np.array_equal(to_square(image, 448), np.asarray(rows_first.crop((0, 74, 448, 522))))


def test_a_stretched_image_keeps_its_corners():
    pixels = np.random.default_rng(1).integers(0, 256, (24, 60, 3), np.uint8)
    ours = to_square(Image.fromarray(pixels), 16, ResizeConfig(mode="stretch", resample="bilinear"))
    assert np.abs(ours.astype(int) - scaled(pixels, 16, 16, triangle, 1.0)).max() <= 1


def test_siglip_pixels_are_those_of_the_published_image_processor():
    from transformers import SiglipImageProcessorPil

    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (48, 70, 3), np.uint8))
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32}, resample=Image.Resampling.BILINEAR)
    expected = processor(images=[image], return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    ours = to_square(image, 32, ResizeConfig(mode="stretch", resample="bilinear"))
    assert np.allclose(ours / 127.5 - 1, expected, atol=1e-6)


def test_a_strip_costs_no_more_than_what_is_kept():
    assert to_square(Image.new("RGB", (4_000_000, 1), "red"), 256).shape == (256, 256, 3)  # 1 GPix if resized whole


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_decode_to_their_pixels(kind):
    image = smooth(40, 40)
    decoded = decode_image(encode(image, kind), 40)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - np.asarray(image)).mean() < 4


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_becomes_white(mode):
    image = Image.new(mode, (8, 8), "black")
    image.putalpha(Image.fromarray(np.repeat([[0, 255]], 4, 1).repeat(8, 0).astype(np.uint8)))
    pixels = decode_image(encode(image), 8)
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == 0).all()


def test_a_transparent_palette_becomes_white():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(0, (0, 0, 4, 8))
    pixels = decode_image(encode(image, transparency=0), 8)
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == [40, 50, 60]).all()


GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6


def opaque(samples: np.ndarray, depth: int) -> np.ndarray:
    """Samples [H, W, 1 or 3] of a PNG as its RGB pixels: their upper 8 bits, or scaled up to 8."""
    pixels = samples >> 8 if depth == 16 else samples * (255 // (2**depth - 1))
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.uint8)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("color", "depth"), [*((GREY, depth) for depth in (1, 2, 4, 8, 16)), (RGB, 8), (RGB, 16)])
def test_the_transparent_colour_of_a_png_becomes_white(color, depth, interlaced):
    generator = np.random.default_rng(depth)
    samples = generator.integers(0, 2**depth, (9, 13, 1 if color == GREY else 3), np.int64)
    for key in (samples[4, 5].copy(), 2**depth - 1 - samples[4, 5]):
        samples[:2, 3:6] = key
        # Neighbours of the key, which differ from it in one bit of one sample, stay as they are.
        for bit in range(depth):
            samples[8, bit % 13] = key
            samples[8, bit % 13, -1] ^= 1 << bit
        expected = np.where((samples == key).all(-1, keepdims=True), 255, opaque(samples, depth))
        # Bits beyond the depth do not count.
        for noise in {0, 2**16 - 2**depth} if depth < 16 else {0}:
            clear = chunk(b"tRNS", np.array(key + noise, ">u2").tobytes())
            found = np.asarray(open_image(png_of(samples, depth, color, clear, interlaced=interlaced)))
            assert np.array_equal(found, expected)
        turned = png_of(samples, depth, color, clear, chunk(b"eXIf", tiff([entry(0x112, 3, 8)])), interlaced=interlaced)
        assert np.array_equal(np.asarray(open_image(turned)), np.rot90(expected))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("color", [GREY_ALPHA, RGB_ALPHA])
def test_the_alpha_of_a_png_lies_on_white(color, depth):
    samples = np.random.default_rng(3).integers(0, 2**depth, (9, 13, 2 if color == GREY_ALPHA else 4), np.int64)
    samples[:3, :, -1], samples[3:6, :, -1] = 0, 2**depth - 1
    colors, alpha = opaque(samples[..., :-1], depth).astype(float), opaque(samples[..., -1:], depth) / 255
    found = np.asarray(open_image(png_of(samples, depth, color)))
    assert np.abs(found - (colors * alpha + 255 * (1 - alpha))).max() <= 1
    assert np.array_equal(found[3:6], colors[3:6]) and (found[:3] == 255).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_every_entry_of_a_palette_has_its_own_alpha(depth):
    generator = np.random.default_rng(4)
    samples = generator.integers(0, 2**depth, (9, 13, 1), np.int64)
    colors = generator.integers(0, 256, (2**depth, 3), np.int64)
    palette = chunk(b"PLTE", colors.astype(np.uint8).tobytes())
    for alphas in ([0], [255, 0], [128, 7], [255] * 2**depth):
        full = np.full((2**depth, 1), 255)
        full[: len(alphas), 0] = alphas
        expected = (colors * full / 255 + 255 - full)[samples[..., 0]]
        found = np.asarray(open_image(png_of(samples, depth, PALETTE, palette, chunk(b"tRNS", bytes(alphas)))))
        assert np.abs(found - expected).max() <= 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("color", "piece"),
    [
        (RGB, chunk(b"tRNS", b"\0\1\0")),
        (GREY, chunk(b"tRNS", b"\0")),
        (GREY, chunk(b"tRNS", b"")),
        (RGB, chunk(b"tRNS", bytes(6), off=1)),
        (GREY_ALPHA, chunk(b"tRNS", bytes(6))),
        (PALETTE, chunk(b"tRNS", bytes(300))),
        (PALETTE, chunk(b"tRNS", b"")),
        (PALETTE, chunk(b"tRNS", b"\0", off=1)),
    ],
)
def test_a_transparency_that_cannot_be_read_is_none(color, piece):
    samples = np.zeros((4, 4, {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2}[color]), np.int64)
    samples[..., -1] = 255 if color == GREY_ALPHA else 0
    palette = [chunk(b"PLTE", bytes(3))] if color == PALETTE else []
    assert not np.asarray(open_image(png_of(samples, 8, color, *palette, piece))).any()


def test_a_picture_in_memory_keeps_its_transparent_colour_on_white():
    image = Image.new("RGB", (8, 8), (10, 20, 30))
    image.paste((40, 50, 60), (0, 0, 4, 8))
    image.info["transparency"] = (40, 50, 60)
    pixels = to_square(image, 8)
    assert (pixels[:, :4] == 255).all() and (pixels[:, 4:] == (10, 20, 30)).all()


def test_sixteen_bits_are_scaled_not_clipped():
    image = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    assert (decode_image(encode(image), 8) == 0x80).all()


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr"])
def test_every_colour_space_becomes_rgb(mode):
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    assert decode_image(encode(smooth(16, 16).convert(mode), kind), 16).shape == (16, 16, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_as_their_exif_says(orientation):
    image = smooth(32, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how to store it so that the orientation restores it
    stored = image.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else image
    opened = open_image(encode(stored, "PNG", exif=exif))
    assert np.array_equal(np.asarray(opened), np.asarray(image))


def test_a_large_jpeg_decoded_small_is_nearly_the_whole_one():
    data = encode(smooth(1200, 900), "JPEG", quality=95)
    small = open_image(data, at_least=64)
    assert 2 * 64 <= min(small.size) < 900
    assert np.abs(to_square(small, 64).astype(int) - to_square(open_image(data), 64)).max() <= 6


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise with the spectrum of photographs: amplitudes fall as 1 / frequency."""
    generator = np.random.default_rng(seed)
    planes = []
    for _ in range(3):
        spectrum = np.fft.rfft2(generator.standard_normal((height, width)))
        fy, fx = np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width
        plane = np.fft.irfft2(spectrum / np.maximum(np.hypot(fy, fx), 1), (height, width))
        planes.append(128 + 50 * plane / plane.std())
    return Image.fromarray(np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("width", "height", "size"), [(1024, 768, 64), (700, 1100, 128)])
def test_pixels_of_a_photograph_decoded_small_are_within_a_bound(width, height, size, progressive):
    """The stream decodes smaller than the index does; to the eye, and to a vision tower, it is the same picture."""
    data = encode(photo(width, height), "JPEG", quality=90, progressive=progressive)
    drafted = open_image(data, at_least=size)
    assert 2 * size <= min(drafted.size) < min(width, height)
    off = np.abs(decode_image(data, size).astype(int) - to_square(open_image(data), size))
    assert off.mean() < 1
    assert np.quantile(off, 0.999) <= 5


@pytest.mark.parametrize("kind", FORMATS)
def test_a_view_is_the_same_alone_and_beside_others(kind):
    data = encode(photo(640, 420), kind)
    views = [(side, ResizeConfig()) for side in (32, 100, 30, 32)] + [(48, ResizeConfig(mode="stretch"))]
    together = decode_views(data, views)
    assert set(together) == set(views)
    for size, resize in views:
        assert np.array_equal(together[size, resize], decode_image(data, size, resize))


@given(progressive=st.booleans(), data=st.data())
@settings(UNHURRIED, max_examples=150)
def test_damage_is_found_alike_whole_and_small(progressive, data):
    """Else indexing would call a sample good that training refuses, or the other way round."""
    broken = bytearray(JPEGS[progressive])
    if data.draw(st.booleans()):
        del broken[data.draw(st.integers(1, len(broken) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    found = []
    for at_least in (None, 20):
        try:
            open_image(bytes(broken), at_least=at_least)
            found.append("")
        except DamagedSampleError as damage:
            found.append(damage.reason.split(":")[0])
    assert found[0] == found[1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("width", "height"), [(10_100, 10_000), (30_000, 30_000)])
def test_bombs_are_refused_by_their_size(width, height):
    assert width * height > MAX_PIXELS
    with pytest.raises(DamagedSampleError, match="image too large"):
        decode_image(png_bomb(width, height), 8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no JPEG, PNG, WEBP"),
        (b"no image", "no JPEG, PNG, WEBP"),
        (b"BM, a text", "no JPEG, PNG, WEBP"),
        (b"GIF89a" + bytes(40), "format GIF, only JPEG, PNG, WEBP are read"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "format HEIC, only JPEG, PNG, WEBP are read"),
        (b"\x89PNG\r\n\x1a\n", "its header is cut off"),
    ],
)
def test_what_is_no_image_is_refused(data, reason):
    with pytest.raises(DamagedSampleError, match=f"^undecodable image: {reason}$"):
        decode_image(data, 8)


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF", "AVIF"])
def test_further_formats_are_read_where_they_are_asked_for(kind):
    image = smooth(24, 16)
    data = encode(image, kind)
    assert image_format(data) == kind and decodable(kind)
    found = np.asarray(open_image(data, formats=(*FORMATS, kind)), int)
    assert np.abs(found - np.asarray(image)).mean() < 8
    with pytest.raises(DamagedSampleError, match=f"format {kind}"):
        open_image(data)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_whose_range_nobody_states_are_not_guessed(mode):
    with pytest.raises(DamagedSampleError, match="TIFF of 32 bits a channel"):
        open_image(encode(Image.new(mode, (8, 8), 7), "TIFF"), formats=["TIFF"])


GREY_PNG = png_of(np.zeros((4, 4, 1)), 8, GREY)
DAMAGED = {
    "size changed": (GREY_PNG.replace(b"\0\0\0\4\x08\0", b"\0\0\0\5\x08\0"), "bad header checksum in b'IHDR'"),
    "palette": (
        png_of(np.zeros((4, 4, 1)), 8, PALETTE, chunk(b"PLTE", bytes(3), off=1)),
        "bad header checksum in b'PLTE'",
    ),
    "depth": (png_of(np.zeros((4, 4, 1)), 9, GREY), "not identified by this driver"),
    "header cut": (GREY_PNG[:30], "its header is cut off"),
    "header of a JPEG cut": (encode(smooth(8, 8), "JPEG")[:300], "Truncated File Read"),
    "pixels cut": (encode(smooth(24, 24))[:-40], "image file is truncated"),
}


@pytest.mark.parametrize(("data", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_damage_of_what_pixels_depend_on_is_named(data, reason):
    with pytest.raises(DamagedSampleError, match=f"^undecodable image: .*{re.escape(reason)}") as damage:
        open_image(data)
    assert len(damage.value.reason.splitlines()) == 1


ERRORS = [AssertionError, AttributeError, BufferError, EOFError, ImportError, KeyError, IndexError, NotImplementedError]
ERRORS += [OSError, OverflowError, RecursionError, RuntimeError, SyntaxError, TypeError, UnicodeError, UserWarning]
ERRORS += [ValueError, ZeroDivisionError, struct.error, zlib.error]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("step", ["open", "load"])
def test_whatever_a_decoder_raises_is_damage(error, step, monkeypatch):
    opener, accept = Image.OPEN["PNG"]

    def fail(*_):
        raise error("no good")

    def open_it(*given):
        image = fail() if step == "open" else opener(*given)
        image.load = fail
        return image

    monkeypatch.setitem(Image.OPEN, "PNG", (open_it, accept))
    for decode in (
        open_image,
        lambda data: decode_image(data, 8),
        lambda data: decode_views(data, [(8, ResizeConfig())]),
    ):
        with pytest.raises(DamagedSampleError, match="undecodable image: .*no good"):
            decode(encode(smooth(16, 16)))


JPEGS = [encode(photo(200, 160), "JPEG", progressive=progressive) for progressive in (False, True)]
PICTURES = [encode(smooth(24, 17), kind) for kind in FORMATS] + [encode(smooth(24, 17).convert("P"), transparency=3)]


@given(picture=st.sampled_from(PICTURES), data=st.data())
@settings(UNHURRIED, max_examples=400)
def test_damage_of_any_kind_raises_nothing_else(picture, data):
    broken = bytearray(picture[: data.draw(st.integers(0, len(picture)))])
    for _ in range(data.draw(st.integers(0, 4)) if broken else 0):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode_image(bytes(broken), 16).shape == (16, 16, 3)
    except DamagedSampleError:
        pass
