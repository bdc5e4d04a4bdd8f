"""What Pillow reads is read: as it is where a shard may hold it, else as the PNG of its pixels; the rest is named."""

import io
import sys
import types

import numpy as np
import pytest
from PIL import Image

from blip3o.data.images import decode
from blip3o.data.images.decode import MAX_PIXELS, open_image
from blip3o.data.sets.imported import import_set
from blip3o.data.sets.importing.pictures import READ_EXTENSIONS, extension, stored_picture
from blip3o.data.shards.damage import DamagedSampleError
from tests.data.sets.importing.made import samples
from tests.data.shard_files import encode, png
from tests.data.shards.test_facts import picture

TURNED = Image.Exif()
TURNED[0x0112] = 6
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def stored(data: bytes, name: str = "x.jpg"):
    return stored_picture(data, name, max_pixels=MAX_PIXELS)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(open_image(data))


@pytest.mark.parametrize(("kind", "ext"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("MPO", "jpg")])
@pytest.mark.parametrize("name", ["x.jpg", "x.JFIF", "x.png", "x.webp", "x.gif", "x"])
def test_what_a_shard_may_hold_stays_as_it_is_whatever_it_is_called(kind, ext, name):
    data = encode(picture(1), kind)
    found = stored(data, name)
    assert (found.data, found.ext, found.converted) == (data, ext, False)


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF", "JPEG2000", "ICO"])
@pytest.mark.parametrize("name", ["x.tif", "x.jpg"])
def test_lossless_formats_keep_their_pixels(kind, name):
    image = picture(2).quantize(16).convert("RGB").resize((32, 32), Image.Resampling.NEAREST)
    found = stored(encode(image, kind), name)
    assert (found.ext, found.format, found.converted, found.frames) == ("png", kind, True, 1)
    assert (pixels(found.data) == np.asarray(image)).all()


def test_photos_of_phones_are_turned_upright_and_transparent_ones_are_on_white():
    image = picture(3)
    turned = stored(encode(image, "TIFF", exif=TURNED))
    assert (pixels(turned.data) == np.rot90(np.asarray(image), -1)).all()
    clear = stored(encode(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "TIFF"))
    assert (pixels(clear.data) == 255).all()
    avif = stored(encode(image, "AVIF", quality=95))
    assert avif.format == "AVIF" and np.abs(pixels(avif.data).astype(int) - np.asarray(image)).mean() < 12


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_of_several_frames_or_pages_the_first_is_stored_and_the_record_says_so(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    path = tmp_path / "in" / f"x.{kind.lower()}"
    path.parent.mkdir()
    path.write_bytes(encode(frames[0], kind, save_all=True, append_images=frames[1:]))
    path.with_suffix(".json").write_text('{"caption": "said", "converted": "theirs"}')
    done = import_set(str(path.parent), f"{tmp_path}/out")
    ((image, _, record),) = samples(done)
    assert (pixels(image) == (255, 0, 0)).all() and record["file"] == path.name
    assert record["converted"] == {"format": kind, "frames": 3} and record["original"] == {"converted": "theirs"}
    assert done.account()[1] == f"converted to PNG: 1 x {kind} of several frames (the first)"


@pytest.mark.parametrize(
    ("data", "name", "reason"),
    [
        (HEIC, "x.heic", r"format not read: HEIC \(install the extra heic, or save it as JPEG\)$"),
        (HEIC, "x.jpg", "format not read: HEIC"),
        (b"\xff\x0a" + bytes(50), "x.jxl", r"format not read: JXL \(save it as PNG or JPEG\)$"),
        (encode(picture(1), "TIFF"), "x.NEF", r"format not read: NEF \(a raw photo: save it as JPEG or TIFF\)$"),
        (b"FUJIFILMCCD-RAW", "x.raf", r"format not read: RAF \(a raw"),
        (encode(picture(1), "PPM"), "x.ppm", "format not read: PPM"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "x.svg", "format not read: SVG"),
        (b"<?xml version='1.0'?><svg/>", "x.png", "undecodable image: is an SVG file: save it as PNG"),
        (
            b"\n<!DOCTYPE HTML><title>404",
            "x.jpg",
            "undecodable image: is an HTML page",
        ),
        (b"version https://git-lfs", "x.jpg", "undecodable image: is a Git LFS pointer: run `git lfs pull`"),
        (b"%PDF-1.7", "x.jpg", "undecodable image: is a PDF"),
        (b"PK\x03\x04", "x.jpg", "undecodable image: is a zip archive"),
        (b"", "x.jpg", "undecodable image: is empty"),
        (b"text", "x.jpg", r"undecodable image: is text \('text'\)"),
        (b"\x01\x02", "x.jpg", "undecodable image: no JPEG, PNG, WEBP, TIFF, BMP"),
        (encode(picture(1), "TIFF")[:200], "x.tif", "undecodable image: "),
        (
            encode(Image.new("F", (4, 4)), "TIFF"),
            "x.tif",
            r"format not read: TIFF of 32 bits a channel \(save it with 8",
        ),
        (encode(Image.new("I", (4, 4)), "TIFF"), "x.tif", "format not read: TIFF of 32 bits a channel"),
        (encode(Image.new("1", (900, 900)), "TIFF"), "x.tif", "image too large: 900x900 pixels, limit 500000"),
    ],
)
def test_what_is_not_read_is_named(data, name, reason):
    with pytest.raises(DamagedSampleError, match=f"^{reason}"):
        stored_picture(data, name, max_pixels=500_000)


def test_heic_is_read_where_its_decoder_is_installed(monkeypatch):
    """The package is not among those of the tests: one that opens a HEIC as a known picture takes its place."""
    package = types.ModuleType("pillow_heif")

    def register() -> None:
        Image.register_open("HEIF", lambda fp, _: Image.open(io.BytesIO(png(4))), lambda prefix: b"heic" in prefix)

    package.register_heif_opener = register
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    decode.decodable.cache_clear()
    try:
        found = stored(HEIC, "x.heic")
    finally:
        monkeypatch.undo()
        decode.decodable.cache_clear()
        Image.OPEN.pop("HEIF", None)
        Image.ID.remove("HEIF")
    assert (found.format, found.ext) == ("HEIC", "png") and (pixels(found.data) == pixels(png(4))).all()


def test_extensions():
    assert [extension(name) for name in ("a.JPG", "a.b.png", "a", "x.y/a", "a.", ".jpg")] == [
        "jpg",
        "png",
        "",
        "",
        "",
        "jpg",
    ]
    assert {"jfif", "jpe", "heic", "avif", "tif"} <= READ_EXTENSIONS
