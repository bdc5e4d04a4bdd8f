"""Facts of a sample: hashes that follow what a picture looks like, checksums that follow bytes, and plain fields."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from blip3o.data.shards.facts import MAX_FIELD_CHARS, MAX_FIELDS, checksum, perceptual_hash, scalar_fields
from tests.data.shard_files import UNHURRIED, encode, png


def picture(seed: int, side: int = 96) -> Image.Image:
    """A few soft blobs, so that there is something to recognise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def distance(a: int, b: int) -> int:
    return ((a ^ b) & (2**64 - 1)).bit_count()


@pytest.mark.parametrize("seed", range(8))
def test_copies_of_a_picture_have_near_hashes_and_others_do_not(seed):
    image = picture(seed)
    own = perceptual_hash(image)
    assert -(2**63) <= own < 2**63
    again = Image.open(io.BytesIO(encode(image, "JPEG", quality=70)))
    assert distance(own, perceptual_hash(again)) <= 8
    assert distance(own, perceptual_hash(image.resize((61, 61)))) <= 8
    assert distance(own, perceptual_hash(picture(seed + 100))) > 16
    assert distance(own, perceptual_hash(ImageOps.mirror(image))) > 16


def test_flat_pictures_have_one_hash():
    # A flat picture has nothing but its mean: any noise of arithmetic would show in the other bits.
    hashes = {perceptual_hash(Image.new("RGB", (50, 40), shade)) for shade in ("red", "#777777", "white")}
    assert len(hashes) == 1


def test_fields_are_the_scalars_of_a_record():
    record = {"score": 5.5, "n": 3, "ok": True, "language": "en", "list": [1], "none": None, "bad": float("nan")}
    record |= {"long": "x" * (MAX_FIELD_CHARS + 1), "x" * (MAX_FIELD_CHARS + 1): 1, "huge": 2**63}
    assert json.loads(scalar_fields(record)) == {"score": 5.5, "n": 3, "ok": True, "language": "en"}
    assert list(json.loads(scalar_fields({f"f{n:02d}": n for n in range(99)}))) == [
        f"f{n:02d}" for n in range(MAX_FIELDS)
    ]


@given(st.dictionaries(st.text(), st.one_of(st.integers(), st.floats(), st.text(), st.booleans())))
@UNHURRIED
def test_fields_can_always_be_written_down(record):
    assert json.loads(scalar_fields(record).encode().decode()).items() <= record.items()


def test_a_checksum_follows_all_parts():
    assert checksum(b"ab", b"c") == checksum(b"abc") != checksum(b"abd")
    assert 0 <= checksum(png()) < 2**32
