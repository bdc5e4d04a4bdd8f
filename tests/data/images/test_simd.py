"""The fast engine finds the damage that Pillow finds, and its pixels but for a level here and there."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blip3o.config.model import ResizeConfig
from blip3o.data.images import simd
from blip3o.data.images.decode import decode_views
from blip3o.data.inputs import StageInputs
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.errors import ConfigError
from tests.data.images.test_decode import photo, smooth
from tests.data.pictures import jpeg_with, segment, turned
from tests.data.shard_files import UNHURRIED, encode
from tests.recipes import recipe

PHOTO = photo(310, 420)
TURNED = jpeg_with(encode(PHOTO, "JPEG"), segment(0xE1, b"Exif\0\0" + turned(6)))
VIEWS = [(64, ResizeConfig()), (48, ResizeConfig(mode="stretch", resample="bilinear")), (350, ResizeConfig())]
PICTURES = {
    "4:2:0": encode(PHOTO, "JPEG"),
    "4:4:4": encode(PHOTO, "JPEG", subsampling=0),
    "progressive": encode(PHOTO, "JPEG", progressive=True),
    "decoded smaller": encode(photo(1500, 1100), "JPEG"),
    "grey": encode(PHOTO.convert("L"), "JPEG"),
    "CMYK": encode(PHOTO.convert("CMYK"), "JPEG"),
    "turned": TURNED,
    "PNG with alpha": encode(PHOTO.convert("RGBA").rotate(20)),
    "WebP": encode(PHOTO, "WEBP"),
    "strip": encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (2, 60_000, 3), np.uint8))),
}
SMALL = [
    encode(smooth(96, 80), "JPEG", **options)
    for options in ({}, {"subsampling": 0}, {"progressive": True}, {"restart_marker_blocks": 2})
]

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(module) is None for module in simd.PACKAGES), reason="the extra simd is not installed"
)


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
def test_pixels_are_pillows_within_a_level(picture):
    expected, found = decode_views(picture, VIEWS), decode_views(picture, VIEWS, "simd")
    for view in VIEWS:
        off = np.abs(found[view].astype(int) - expected[view])
        # A sum near a half may round otherwise in the first pass, and again in the second.
        assert off.max() <= 2
        assert np.count_nonzero(off) <= 0.015 * off.size


def test_a_jpeg_that_is_not_scaled_has_pillows_pixels():
    for options in ({}, {"subsampling": 0}, {"progressive": True}):
        square = encode(PHOTO.crop((0, 0, 300, 300)), "JPEG", **options)
        view = (300, ResizeConfig())
        assert np.array_equal(decode_views(square, [view], "simd")[view], decode_views(square, [view])[view])


def verdict(data: bytes, engine: str) -> str | np.ndarray:
    view = (32, ResizeConfig())
    try:
        return decode_views(data, [view], engine)[view]
    except DamagedSampleError as damage:
        return damage.reason


@given(picture=st.sampled_from(SMALL), data=st.data())
@settings(UNHURRIED, max_examples=300)
def test_damage_is_found_alike_by_both_engines(picture, data):
    """Else the ledger, and with it what takes a damaged sample's place, would depend on the engine."""
    broken = bytearray(picture[: data.draw(st.integers(1, len(picture)))])
    for _ in range(data.draw(st.integers(0, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    expected, found = (verdict(bytes(broken), engine) for engine in ("pillow", "simd"))
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
    else:
        assert np.abs(found.astype(int) - expected).max() <= 2


def test_pixels_do_not_depend_on_the_processors_instructions(monkeypatch):
    from cykooz_resizer import CpuExtensions, Resizer

    pixels, found = np.asarray(PHOTO), []
    for extensions in (CpuExtensions.none, CpuExtensions.sse4_1, CpuExtensions.avx2):
        resizer = Resizer()
        resizer.cpu_extensions = extensions  # keeps those that it has if the processor lacks these
        monkeypatch.setattr(simd._MINE, "resizer", resizer)
        found.append(simd.resample(pixels, (0, 3, 64, 67), (64, 86), "bicubic"))
    assert all(np.array_equal(found[0], other) for other in found)


def test_a_missing_package_ends_a_run_before_it_reads_anything(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "simplejpeg" else real(name))
    StageInputs(recipe())
    with pytest.raises(ConfigError, match=r"needs simplejpeg: install 'blip3o\[simd\]'"):
        StageInputs(recipe(data={"decode": {"engine": "simd"}}))
