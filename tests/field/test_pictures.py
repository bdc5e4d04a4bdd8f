"""Pictures whose metadata is wrong: imported, indexed, inspected, asked about and evaluated as what their pixels are.

All are 32×16, red on the left and blue on the right, or turned by an orientation that can be read.
"""

import base64
import json
import random
import zlib

import numpy as np
import pytest
from PIL import Image

from blip3o import storage
from blip3o.bundle.reading import load_bundle
from blip3o.data.images.decode import open_image
from blip3o.data.shards.scan import scan_shard
from blip3o.evaluate.benchmark.judge import judge
from blip3o.evaluate.benchmark.plan import Plan
from blip3o.evaluate.benchmark.prepare import prepare
from blip3o.evaluate.benchmark.rows import read_rows
from blip3o.evaluate.benchmark.score import score
from blip3o.evaluate.suites.registry import find_suite as entry_of
from jobs import cli
from jobs.commands import inference
from jobs.evaluate import main
from serve.api import build_api
from serve.engine.engine import Engine
from serve.engine.local import LocalBackend
from tests.bundles import write_nano_bundle
from tests.data.pictures import chunk, entry, jpeg_with, png_with, riff, segment, turned, webp_with
from tests.data.shard_files import encode, index, tar
from tests.serve.client import Server, question, raw

RED, BLUE, WHITE = (220, 30, 30), (30, 30, 220), (255, 255, 255)
UPRIGHT, TURNED = (32, 16), (16, 32)


def halves() -> Image.Image:
    image = Image.new("RGB", UPRIGHT, RED)
    image.paste(BLUE, (16, 0, 32, 16))
    return image


JPEG, PNG, WEBP = (
    encode(halves(), kind, **options)
    for kind, options in [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True})]
)
CUT = encode(halves(), "JPEG", quality=95)[:-10]
DESCRIPTION = entry(0x10E, 5, 1, 2)
BAD_RATIONAL = entry(0x11A, 10, -1, 0)
UNIT = entry(0x128, 7, b"\2\0\0\0")
MIB = bytes(3 << 19)


def exif(*tags, orientation: int = 6) -> bytes:
    return segment(0xE1, b"Exif\0\0" + turned(orientation, *tags))


# Name: bytes, size, colour of the first pixel and of the last one.
PICTURES = {
    # A tag of another type than its name asks for.
    "description_as_rational.jpg": (jpeg_with(JPEG, exif(DESCRIPTION)), TURNED, RED, BLUE),
    "description_as_rational.png": (png_with(PNG, chunk(b"eXIf", turned(6, DESCRIPTION))), TURNED, RED, BLUE),
    "description_as_rational.webp": (
        webp_with(WEBP, *UPRIGHT, riff(b"EXIF", turned(6, DESCRIPTION))),
        TURNED,
        RED,
        BLUE,
    ),
    "unit_as_bytes.jpg": (jpeg_with(JPEG, exif(UNIT)), TURNED, RED, BLUE),
    "software_as_float.jpg": (jpeg_with(JPEG, exif(entry(0x131, 12, 1.5), orientation=8)), TURNED, BLUE, RED),
    "orientation_as_text.jpg": (
        jpeg_with(JPEG, segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\2\0\0\0\x023\0\0\0")),
        UPRIGHT,
        BLUE,
        RED,
    ),
    # Numbers and pointers that cannot be.
    "rot_bad_rational.jpg": (jpeg_with(JPEG, exif(BAD_RATIONAL)), TURNED, RED, BLUE),
    "maker_note_nowhere.jpg": (jpeg_with(JPEG, exif((0x8769, 4, 1, b"\xff\xff\xff\x7f"))), TURNED, RED, BLUE),
    "text_without_end.jpg": (jpeg_with(JPEG, exif((0x10F, 2, 2**31, b"\0\0\0\0"))), TURNED, RED, BLUE),
    "orientation_of_nine.jpg": (jpeg_with(JPEG, exif(orientation=9)), UPRIGHT, RED, BLUE),
    # Blocks that are not what they claim to be.
    "png_bad_exif.png": (png_with(PNG, chunk(b"eXIf", b"\0\x08\0\2\1\x12\0\3")), UPRIGHT, RED, BLUE),
    "empty_exif.jpg": (jpeg_with(JPEG, segment(0xE1, b"Exif\0\0")), UPRIGHT, RED, BLUE),
    "cut_exif.webp": (webp_with(WEBP, *UPRIGHT, riff(b"EXIF", b"II*\0\x08\0\0\0\1\0\x12\1")), UPRIGHT, RED, BLUE),
    "bad_mpf.jpg": (jpeg_with(JPEG, segment(0xE2, b"MPF\0MM\0*\0\0\0\x08")), UPRIGHT, RED, BLUE),
    "bad_jfif.jpg": (jpeg_with(JPEG, segment(0xE0, b"JFIF\0\1")), UPRIGHT, RED, BLUE),
    # Profiles and texts of any size, and checksums of what pixels do not need.
    "png_big_iccp.png": (png_with(PNG, chunk(b"iCCP", b"wide gamut\0\0" + zlib.compress(MIB))), UPRIGHT, RED, BLUE),
    "png_big_ztxt.png": (png_with(PNG, chunk(b"zTXt", b"parameters\0\0" + zlib.compress(MIB))), UPRIGHT, RED, BLUE),
    "png_big_itxt.png": (
        png_with(PNG, after=[chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(MIB))]),
        UPRIGHT,
        RED,
        BLUE,
    ),
    "png_text_bad_crc.png": (png_with(PNG, chunk(b"tEXt", b"Comment\0abc", off=1)), UPRIGHT, RED, BLUE),
    "png_gamma_cut.png": (png_with(PNG, chunk(b"gAMA", b"\0"), chunk(b"pHYs", b"", off=3)), UPRIGHT, RED, BLUE),
    "png_text_cut_off.png": (png_with(PNG, after=[chunk(b"tEXt", b"note\0" + bytes(90))])[:-40], UPRIGHT, RED, BLUE),
    # A colour that means transparency.
    "png_rgb_trns.png": (png_with(PNG, chunk(b"tRNS", bytes([0, 30, 0, 30, 0, 220]))), UPRIGHT, RED, WHITE),
    "png_rgb_trns_turned.png": (
        png_with(PNG, chunk(b"eXIf", turned(8)), chunk(b"tRNS", bytes([0, 30, 0, 30, 0, 220]))),
        TURNED,
        WHITE,
        RED,
    ),
}
CRASHED = ("description_as_rational.jpg", "rot_bad_rational.jpg", "png_big_ztxt.png", "png_rgb_trns.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pictures with their captions, and one that is really damaged."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, (data, *_) in PICTURES.items():
        (folder / name).write_bytes(data)
        (folder / f"{name}.txt").write_text(name)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("nano") / "bundle")
    write_nano_bundle(uri, seed=3)  # of those that say something
    return uri


@pytest.fixture
def blip3o(capsys):
    """Runs the `blip3o` command and returns its exit code and what it printed."""

    def run(*argv):
        code = cli.main(argv)
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def assert_right(image: Image.Image, name: str) -> None:
    _, size, first, last = PICTURES[name]
    assert image.size == size
    corners = np.array([image.getpixel((0, 0)), image.getpixel((size[0] - 1, size[1] - 1))], int)
    assert np.abs(corners - [first, last]).max() <= 3  # JPEG


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_its_pixels(name, folder):
    assert_right(open_image(PICTURES[name][0]), name)
    assert_right(inference.open_image(folder / name), name)


def test_every_picture_of_a_folder_is_imported(blip3o, tmp_path):
    for number, (name, (data, *_)) in enumerate(PICTURES.items()):
        stem, _, ending = name.rpartition(".")
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{number}{stem}.{ending}").write_bytes(data)
        (tmp_path / f"in/{number}{stem}.txt").write_text(name)
    code, said = blip3o("data", "import", str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    count = len(PICTURES)
    assert code == 0 and f"{count} of {count} pictures became samples, 0 are left out" in said, said


def test_every_picture_of_a_shard_is_indexed_and_inspected(blip3o, tmp_path):
    files = []
    for number, (name, (data, *_)) in enumerate(PICTURES.items()):
        files += [(f"{number:03d}.{name.rpartition('.')[2]}", data), (f"{number:03d}.txt", name.encode())]
    manifest = index(tmp_path, [tar(files)])
    [shard] = manifest.shards
    scan = scan_shard(storage.stat(shard.uri), source="src", shard=0)
    assert (shard.rows, scan.damage) == (len(PICTURES), ())
    assert [(it.facts.width, it.facts.height) for it in scan.samples] == [size for _, size, *_ in PICTURES.values()]
    code, said = blip3o("data", "inspect", manifest.uri, "--out", str(tmp_path / "page.html"))
    assert code == 0 and "Traceback" not in said
    assert (tmp_path / "page.html").read_text().count("data:image") >= len(PICTURES) // 2


@pytest.mark.parametrize("name", CRASHED)
def test_a_picture_is_asked_about(name, folder, bundle, blip3o):
    arguments = ["--image", str(folder / name), "--bundle", bundle, "--max-tokens", "1"]
    code, said = blip3o("chat", "what is it?", *arguments)
    assert code == 0, said


def test_a_picture_that_is_damaged_is_one_line(bundle, blip3o, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(CUT)
    (tmp_path / "gif.png").write_bytes(encode(halves().convert("P"), "GIF"))
    for name, reason in {
        "cut.jpg": "image file is truncated",
        "gif.png": "format GIF, only JPEG, PNG, WEBP are read",
    }.items():
        code, said = blip3o("chat", "what is it?", "--image", str(tmp_path / name), "--bundle", bundle)
        [line] = said.splitlines()
        assert code == 1 and line.startswith(f"error: {tmp_path / name} is not an image that can be read: ")
        assert reason in line


def test_the_server_takes_them_all_and_refuses_damage(bundle):
    engine = Engine(load_bundle(bundle))
    engine.start()
    rest = CUT, PNG[:50], encode(halves().convert("P"), "GIF"), b"II*\0"
    chance = random.Random(0)
    mutants = []
    for data, *_ in PICTURES.values():
        broken = bytearray(data)
        for _ in range(3):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        mutants.append(bytes(broken))
    with Server(build_api(LocalBackend(engine), "nano")) as server:

        def status(data: bytes) -> int:
            url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            body = {"model": "nano", "messages": question("what is it?", url), "max_tokens": 1}
            return raw("POST", f"{server.url}/v1/chat/completions", body).status

        assert {name: status(data) for name, (data, *_) in PICTURES.items()} == dict.fromkeys(PICTURES, 200)
        assert [status(data) for data in rest] == [400] * len(rest)
        assert {status(data) for data in mutants} <= {200, 400}
    engine.close()


def test_an_evaluation_asks_about_all_and_counts_the_damaged_one(folder, bundle, tmp_path):
    (folder / "cut.jpg").write_bytes(CUT)
    rows = [
        {"id": number, "image": name, "question": "Is it red?", "answers": ["yes"] * 10}
        for number, name in enumerate([*PICTURES, "cut.jpg"])
    ]
    source = folder / "vqa.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = [
        "--suite",
        "vqa",
        "--source",
        f"vqa={source}",
        "--target",
        bundle,
        "--out",
        str(tmp_path),
        "--actors",
        "0",
    ]
    assert main(options) == 0
    coverage = json.loads((tmp_path / "vqa/score.json").read_text())["coverage"]
    assert coverage["n_expected"] == len(rows) and coverage["n_scored"] == len(PICTURES)
    faults = [
        row["fault"] for row in map(json.loads, (tmp_path / "vqa/files.jsonl").read_text().splitlines()) if row["fault"]
    ]
    [fault] = faults
    assert "cut.jpg: undecodable image: image file is truncated" in fault


def test_a_drawing_that_is_damaged_is_an_unread_finding(tmp_path):
    plan = Plan(out=str(tmp_path), suites=(entry_of("scenes"),), limit=3, samples=1)
    prepare(plan)
    place = plan.folder(plan.suites[0])
    drawings = [PNG, PNG[:60], CUT]
    for item, data in zip(place.read_items(), drawings, strict=True):
        storage.write_bytes(place.file(place.path(item, 0)), data)
    place.write_files(place.describe(place.read_items(), {}))
    judge(plan)
    score(plan)
    coverage = json.loads((tmp_path / "scenes/score.json").read_text())["coverage"]
    assert (coverage["n_scored"], coverage["n_parse_failed"]) == (1, 2)
    faults = [row["fault"] for row in read_rows(place.file("judgements.jsonl")) if row["value"] is None]
    assert len(faults) == 2 and all(fault.startswith("undecodable image: ") for fault in faults)
