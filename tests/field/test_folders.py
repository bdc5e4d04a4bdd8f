"""Folders of phones, notebooks and other tools, through `blip3o data import`."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from blip3o import storage
from blip3o.data.images.containers import image_format
from jobs.cli import app
from tests.data.shard_files import encode
from tests.data.shards.test_facts import picture

# A HEIC and an AVIF, only their heads.
HEIC, AVIF = (b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + bytes(188) for brand in (b"heic", b"avif"))


def run(source: Path | str, out: Path | str, *options: str) -> str:
    """What an import that ends well prints."""
    done = CliRunner().invoke(app, ["data", "import", str(source), "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    return done.stdout


def stored(out: Path | str) -> list[tuple[str, str]]:
    """The format of each picture and its caption, in order."""
    found = []
    for shard in storage.list_files(str(out), suffix=".tar"):
        with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(shard.uri))) as tar:
            parts = [tar.extractfile(member).read() for member in tar.getmembers()]
        found += [(image_format(image), text.decode()) for image, text in zip(parts[::3], parts[1::3], strict=True)]
    return found


def put(root: Path, files: dict[str, bytes | str]) -> None:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())


def test_photos_of_a_phone_are_read_or_counted(tmp_path):
    kinds = {"tif": "TIFF", "bmp": "BMP", "gif": "GIF"}
    files = {}
    for number, ext in enumerate(("jpg", "jpg", "heic", "HEIC", "avif", "tif", "bmp", "gif", "jfif", "jpe")):
        head = {"heic": HEIC, "avif": AVIF}.get(ext.lower())
        files[f"IMG_{number:04}.{ext}"] = head or encode(picture(number), kinds.get(ext, "JPEG"))
        files[f"IMG_{number:04}.txt"] = f"caption {number}"
    put(tmp_path / "in", files)
    said = run(tmp_path / "in", tmp_path / "out")
    assert stored(tmp_path / "out") == [
        ("PNG" if 5 <= number <= 7 else "JPEG", f"caption {number}") for number in (0, 1, 5, 6, 7, 8, 9)
    ]
    assert "7 of 10 pictures became samples, 3 are left out\n" in said
    assert said.count("format not read: HEIC (install the extra heic, or save it as JPEG)") == 2
    assert "IMG_0004.avif: undecodable image: " in said
    listed = CliRunner().invoke(app, ["data", "ledger", f"{tmp_path}/out"]).stdout
    assert listed.startswith("3 entries") and f"{tmp_path}/in/IMG_0002.heic" in listed


def test_copies_of_a_notebook_are_no_data(tmp_path):
    photos = {f"{number:03}.jpg": encode(picture(number), "JPEG") for number in range(3)}
    texts = {name.replace("jpg", "txt"): f"caption {name}" for name in photos}
    copies = {".ipynb_checkpoints/000-checkpoint.jpg": photos["000.jpg"], ".ipynb_checkpoints/000-checkpoint.txt": "x"}
    put(tmp_path / "in", photos | texts | copies)
    said = run(tmp_path / "in", tmp_path / "out")
    assert stored(tmp_path / "out") == [("JPEG", f"caption 00{number}.jpg") for number in range(3)]
    assert "8 files: 6 are or describe these pictures, 0 belong to none" in said
    assert "2 skipped (2 x .ipynb_checkpoints/)" in said


def test_captions_have_the_names_that_tools_give_them(tmp_path):
    image = encode(picture(1), "JPEG")
    put(tmp_path / "in", {"0.jpg": image, "0.caption": "caption 0", "1.jpg": image, "1.jpg.txt": "caption 1"})
    put(
        tmp_path / "in",
        {"2.jpg": image, "metadata.csv": "file_name,text\n2.jpg,caption 2\n", "3.jpg": image, "3.tags": "x"},
    )
    said = run(tmp_path / "in", tmp_path / "out")
    assert stored(tmp_path / "out") == [("JPEG", f"caption {number}") for number in range(3)]
    assert (
        "3.jpg: missing caption: 3.tags lies next to it, but captions are NAME.txt, NAME.caption or NAME.json" in said
    )


def test_links_neither_multiply_nor_vanish(tmp_path):
    put(
        tmp_path / "in",
        {f"{n}.jpg": encode(picture(n), "JPEG") for n in range(2)} | {"0.txt": "caption 0", "1.txt": "x"},
    )
    os.symlink("..", tmp_path / "in/loop")
    os.symlink("../.git/annex/objects/xx/SHA256E-s1.jpg", tmp_path / "in/annex.jpg")
    said = run(tmp_path / "in", tmp_path / "out")
    assert "2 of 2 pictures became samples, 0 are left out\n" in said
    assert "left out 1 other files: blip3o data ledger" in said and ": run git annex get" in said
    assert "6 files: 4 are or describe these pictures, 1 belong to none and are listed, 1 skipped (1 x links" in said


@pytest.mark.parametrize("name", ["photos", "photos.csv", "my photos", "été"])
def test_a_folder_in_an_object_store_is_listed_by_the_same_rules(s3, tmp_path, name):
    root = f"{s3}/field/{name}"
    image = encode(picture(1), "TIFF")
    for key in ("0.tif", "sub/1.TIFF", ".cache/2.tif", "__MACOSX/sub/._1.tif", "3.heic"):
        storage.write_bytes(f"{root}/{key}", HEIC if key.endswith("heic") else image)
    for key, text in {
        "0.tif.txt": "caption 0",
        "sub/metadata.csv": "file_name;text\n1.TIFF;caption 1",
        "4.txt": "x",
    }.items():
        storage.write_bytes(f"{root}/{key}", text.encode())
    said = run(root, f"{root}/out")
    assert stored(f"{root}/out") == [("PNG", "caption 0"), ("PNG", "caption 1")]
    assert "2 of 3 pictures became samples, 1 are left out\nconverted to PNG: 2 x TIFF\n" in said
    assert "8 files: 5 are or describe these pictures, 1 belong to none and are listed, 2 skipped (" in said
    again = run(root, f"{root}/out")
    assert again.startswith("already there: 2 train") and "3 x shards of this set" in again
    assert json.loads(storage.read_bytes(f"{root}/out/dataset.json"))["settings"]["from"] == root
