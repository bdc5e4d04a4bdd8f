"""What a row of a table holds: a picture in any of the ways that are written, a caption, or a reason that names it."""

import base64
import json
import re
import unicodedata
from pathlib import Path

import pytest

from blip3o import storage
from blip3o.data.sets.imported import import_set
from blip3o.data.text.conversations import conversation_pairs
from tests.data.sets.importing.made import import_table, pictures, samples
from tests.data.shard_files import png

BASE64 = base64.b64encode(png(1)).decode()
URL_SAFE = base64.urlsafe_b64encode(png(1)).decode().rstrip("=")
FOLDED = "\n".join(BASE64[at : at + 60] for at in range(0, len(BASE64), 60))


def import_row(folder: Path, **row: object):
    return import_table(folder, "t.jsonl", json.dumps(row).encode())


def reason(folder: Path, row: object) -> str:
    """Why a row is left out, next to one that is read."""
    lines = [json.dumps({"image": "a.png", "caption": "x"}), row if isinstance(row, str) else json.dumps(row)]
    done = import_table(folder, "t.jsonl", "\n".join(lines).encode())
    assert [caption for _, caption, _ in samples(done)] == ["x"]
    (entry,) = done.damage
    assert entry.uid == "import/1"
    return entry.reason


@pytest.mark.parametrize(
    "image",
    [
        "b.png",
        " b.png ",
        "./b.png",
        "deep/../b.png",
        "{here}/b.png",
        "file://{here}/b.png",
        "deep\\..\\b.png",
        ["b.png"],
        [["b.png"]],
        {"path": "b.png"},
        {"url": "b.png"},
        {"path": "{here}/b.png", "bytes": None},
        {"bytes": BASE64, "path": "anything"},
        {"bytes": BASE64},
        {"type": "base64", "media_type": "image/png", "data": BASE64},
        f"data:image/png;base64,{BASE64}",
        f"DATA:image/png;charset=utf-8;base64,{URL_SAFE}",
        f"data:image/png;base64,{FOLDED}",
        {"url": f"data:image/png;base64,{BASE64}"},
        "data:image/png," + "".join(f"%{byte:02x}" for byte in png(1)),
        BASE64,
        FOLDED,
        URL_SAFE,
        list(png(1)),
    ],
)
def test_a_picture_is_found_as_it_is_written(tmp_path, image):
    text = json.dumps(image).replace("{here}", str(tmp_path / "in"))
    done = import_row(tmp_path, image=json.loads(text), caption="x")
    assert [(image, caption) for image, caption, _ in samples(done)] == [(png(1), "x")]


@pytest.mark.parametrize(
    ("row", "captions"),
    [
        ({"caption": "x", "text": "y"}, ["x"]),
        ({"caption": " ", "text": "y"}, ["y"]),
        ({"caption": 3, "text": "y"}, ["y"]),
        ({"caption": ["a", "b"], "text": "y"}, ["y"]),
        ({"caption": ["a", " ", "b"], "alt": "y"}, ["a", "b"]),
        ({"caption": 3.5}, ["3.5"]),
        ({"Caption": "x", "captions": ["y", "z"]}, ["y", "z"]),
        ({"description": "x", "captions": ["y"]}, ["y"]),
        ({"description": "x", "Task1": {"Caption": "y"}}, ["y"]),
        ({"Description": "x", "comment": "y"}, ["y"]),
        ({"captions": "[a cat]"}, ["[a cat]"]),
        ({"captions": '["a", "b"]'}, ["a", "b"]),
        ({"text": "x", "caption": None}, ["x"]),
    ],
)
def test_captions_are_found_in_their_order(tmp_path, row, captions):
    ((_, caption, record),) = samples(import_row(tmp_path, image="b.png", **row))
    assert record["captions"] == captions and caption == captions[0]


def test_names_are_found_in_either_form_of_unicode_and_as_they_are_spelled(tmp_path):
    for number, name in enumerate(("caf\u00e9.png", "nai\u0308ve.png", "100%20.png", "back\\slash.png")):
        storage.write_bytes(f"{tmp_path}/in/{name}", png(number))
    names = [unicodedata.normalize(form, name) for form, name in (("NFD", "caf\u00e9.png"), ("NFC", "nai\u0308ve.png"))]
    lines = [json.dumps({"image": name, "caption": "x"}) for name in [*names, "100%20.png", "back\\slash.png"]]
    storage.write_bytes(f"{tmp_path}/in/t.jsonl", "\n".join(lines).encode())
    found = samples(import_set(f"{tmp_path}/in/t.jsonl", f"{tmp_path}/out"))
    assert [image for image, _, _ in found] == [png(number) for number in range(4)]


def test_one_picture_is_in_one_split_wherever_it_stands(tmp_path):
    data = [base64.b64encode(png(number)).decode() for number in range(20)]
    rows = [{"image": {"bytes": data[n % 20], "path": f"{n % 3}"}, "caption": f"{n}"} for n in range(60)]
    storage.write_bytes(f"{pictures(tmp_path / 'in')}/t.jsonl", "\n".join(map(json.dumps, rows)).encode())
    done = import_set(f"{tmp_path}/in/t.jsonl", f"{tmp_path}/out", heldout=0.4)
    splits = {
        split: {image for image, _, record in samples(done) if record["split"] == split}
        for split in ("train", "heldout")
    }
    assert splits["train"] and splits["heldout"] and not splits["train"] & splits["heldout"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"image": ["a.png", "b.png"], "caption": "x"},
            "row has several images: row 2 has 2 images in 'image', a sample has",
        ),
        (
            {"images": ["a.png", "b.png", "c.png"], "caption": "x"},
            "row has several images: row 2 has 3 images in 'images'",
        ),
        ({"image": 12, "caption": "x"}, r"row names no image: row 2 has a int \(12\) in 'image', not a path"),
        ({"image": True, "caption": "x"}, r"row names no image: row 2 has a bool \(True\) in 'image'"),
        (
            {"image": {"id": 1, "size": 2}, "caption": "x"},
            "row 2 has an object with 'id', 'size' in 'image', not a path",
        ),
        (
            {"image": [], "caption": "x"},
            "row 2 has nothing in any of image, img_path, .*, its columns are 'image', 'caption'",
        ),
        ({"picture_id": "a.png", "caption": "x"}, "row names no image: .* its columns are 'picture_id', 'caption'"),
        ({}, "its columns are none"),
        ({"image": "https://a.example/b.png", "caption": "x"}, "not downloaded: https://a.example/b.png: download it"),
        ({"image_url": "HTTP://a.example/b.png", "caption": "x"}, "not downloaded: HTTP://a.example/b.png"),
        ({"image": "C:\\b.png", "caption": "x"}, r"unusable image path: C:\\b.png is of a Windows drive"),
        ({"image": "../../../../../../../../../../nowhere/b.png", "caption": "x"}, "missing image"),
        ({"image": "~nobody-of-that-name/b.png", "caption": "x"}, "missing image"),
        ({"image": "data:image/png;base64,!!!", "caption": "x"}, "undecodable image: its base64 is damaged"),
        ({"image": "data:text/plain,hello", "caption": "x"}, "undecodable image: is text .'hello'."),
        ({"image": "deep", "caption": "x"}, "unusable image path"),
        (
            {"image": [[[0, 0, 0]] * 2] * 2, "caption": "x"},
            "row names no image: row 2 has a list of numbers in 'image'",
        ),
        ({"image": [0, 256, 3], "caption": "x"}, "row names no image: row 2 has a list of numbers in 'image'"),
        (
            {"image": "a.png"},
            r"missing caption: row 2 has nothing .*prompt \(or --caption-column\), its columns are 'image'",
        ),
        ({"image": "a.png", "caption": ["", " "]}, "missing caption: row 2 has a list in 'caption', not a text"),
        ({"image": "a.png", "caption": {"en": "x"}}, "missing caption: row 2 has a dict in 'caption', not a text"),
        (
            {"image": "a.png", "Caption": None, "lang": "en"},
            "missing caption: .* its columns are 'image', 'Caption', 'lang'",
        ),
        ({"image": "a.png", "caption": "  "}, "empty caption"),
        ({"image": "a.png", "caption": "x", "captions": [3]}, "captions is not a list of texts"),
        ({"image": "a.png", "caption": "x", "captions": ["y" * 100_001]}, "caption too long: 100001 characters, limit"),
        ({"image": "a.png", "conversations": "[1"}, "conversations is not a list of questions.*: it is a str"),
        (
            '{"image": "a.png", "caption": "x", "caption": "y"}',
            "row gives a key twice: row 2 has 'caption' more than once",
        ),
        ("3", "row is no sample: row 2 is a int, not an object of columns"),
        ("null", "row 2 is a NoneType"),
        ({"image": "a.png", "messages": [{"role": "tool", "content": "x"}]}, "unknown role: turn 1 is 'tool'"),
    ],
)
def test_a_row_that_makes_no_sample_is_told_with_what_was_found(tmp_path, row, message):
    assert re.search(message, reason(tmp_path, row))


def test_records_nested_deeply_cost_their_row_at_most(tmp_path):
    deep = [f'{{"image": "a.png", "caption": "x", "deep": {"[" * depth}{"]" * depth}}}' for depth in range(1, 900, 50)]
    done = import_table(tmp_path, "t.jsonl", "\n".join(deep).encode())
    assert len(samples(done)) + len(done.damage) == len(deep) and {entry.reason for entry in done.damage} <= {DEEP}


DEEP = "record is nested too deeply"
ASKED = {"type": "text", "text": "What?"}
TOLD = [("What?", "A dot.")]


def parts(image: object) -> list[dict]:
    return [{"role": "user", "content": [image, ASKED]}, {"role": "assistant", "content": "A dot."}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": parts({"type": "image_url", "image_url": {"url": "b.png"}})},
        {"messages": parts({"type": "image_url", "image_url": f"data:image/png;base64,{BASE64}"})},
        {"messages": parts({"type": "image", "image": "b.png"})},
        {"messages": parts({"type": "image", "source": {"type": "base64", "data": BASE64}})},
        {"messages": parts({"type": "image"}), "images": ["b.png"]},
        {"messages": json.dumps(parts({"type": "image"})), "image": "b.png"},
        {
            "conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A dot."}],
            "image": "b.png",
        },
        {"conversations": parts({"type": "image_url", "image_url": {"url": "b.png"}})},
    ],
)
def test_messages_become_the_records_conversation_and_show_the_picture(tmp_path, row):
    ((image, caption, record),) = samples(import_row(tmp_path, id=7, **row))
    assert (image, caption, record["id"]) == (png(1), "A dot.", 7)
    assert conversation_pairs(record["conversations"]) == TOLD and "messages" not in record
    assert "base64" not in json.dumps(record)


def test_messages_next_to_a_caption_may_be_anything(tmp_path):
    ((_, caption, record),) = samples(import_row(tmp_path, image="a.png", caption="x", messages=[{"role": "tool"}, 3]))
    assert (caption, record["messages"]) == ("x", [{"role": "tool"}, 3]) and "conversations" not in record


def test_several_pictures_of_messages_are_told(tmp_path):
    shown = {
        "role": "user",
        "content": [{"type": "image", "image": "a.png"}, {"type": "image", "image": "b.png"}, ASKED],
    }
    found = reason(tmp_path, {"messages": [shown, {"role": "assistant", "content": "x"}]})
    assert found == "row has several images: row 2 has 2 images in 'messages', a sample has one"
