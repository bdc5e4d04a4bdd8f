"""Lists as spreadsheets, scripts and other tools write them, through `blip3o data import`."""

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from blip3o import storage
from blip3o.errors import DataError
from jobs.cli import app
from tests.data.shard_files import encode
from tests.data.shards.test_facts import picture
from tests.field.test_folders import put, run, stored

ROWS = [{"image": f"img/00{number}.jpg", "caption": f"caption {number}, with a comma"} for number in range(4)]
LINES = "\n".join(map(json.dumps, ROWS))


def table(form: str, header: str) -> str:
    return "\n".join([header, *(form.format(row["image"], row["caption"]) for row in ROWS), ""])


READ = {
    "semicolon.csv": table("{};{}", "image;caption"),
    "tab.csv": table("{}\t{}", "image\tcaption"),
    "header_upper.csv": table('{},"{}"', "Image,Caption"),
    "spaces.csv": table('{}, "{}"', "image, caption"),
    "dot.csv": table('./{},"{}"', "image,caption"),
    "parent.csv": table('img/../{},"{}"', "image,caption"),
    "tab.tsv": table("{}\t{}", "image\tcaption"),
    "EXPORT.CSV": table('{},"{}"', "image,caption"),
    "lists.jsonl": "\n".join(json.dumps(row | {"image": [row["image"]]}) for row in ROWS),
    "lines.json": LINES,
    "pretty.jsonl": json.dumps(ROWS, indent=1),
    "nan.jsonl": "\n".join(json.dumps(row | {"clip": float("nan")}) for row in ROWS),
    "gz.jsonl.gz": gzip.compress(LINES.encode()),
}
SAMPLES = [("JPEG", row["caption"]) for row in ROWS]


@pytest.fixture
def folder(tmp_path):
    put(tmp_path, {row["image"]: encode(picture(number), "JPEG") for number, row in enumerate(ROWS)})
    return tmp_path


def refused(source: Path) -> str:
    """The line of an import that is refused."""
    done = CliRunner().invoke(app, ["data", "import", str(source), "--out", f"{source}-out"])
    assert isinstance(done.exception, DataError)
    return str(done.exception)


@pytest.mark.parametrize("name", READ)
def test_a_table_is_read(folder, name):
    put(folder, {name: READ[name]})
    said = run(folder / name, folder / "out")
    assert stored(folder / "out") == SAMPLES
    assert said == f"wrote 4 train samples at {folder}/out\n4 of 4 rows became samples, 0 are left out\n"
    assert b"NaN" not in storage.read_bytes(f"{folder}/out/train-00000.tar")


@pytest.mark.parametrize("name", ["dot.csv", "parent.csv", "semicolon.csv", "gz.jsonl.gz"])
def test_a_table_is_read_alike_in_an_object_store(s3, folder, name):
    root = f"{s3}/field/tables/{name}-"
    for file in [*(row["image"] for row in ROWS), name]:
        data = READ[name] if file == name else (folder / file).read_bytes()
        storage.write_bytes(f"{root}/{file}", data if isinstance(data, bytes) else data.encode())
    said = run(f"{root}/{name}", f"{root}/out")
    assert stored(f"{root}/out") == SAMPLES and said.endswith("\n4 of 4 rows became samples, 0 are left out\n")


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        (
            "dupcol.csv",
            "image,caption,caption\nimg/000.jpg,first,second\n",
            "2 columns are named 'caption': rename or remove",
        ),
        ("headonly.csv", "image,caption\n", "has no rows: its columns are 'image', 'caption'"),
        (
            "label.csv",
            "id;label\n1;cat\n",
            "found 'id', 'label', delimited by ';'; the picture's path is expected in image, ",
        ),
        (
            "photos.xlsx",
            "PK",
            "is neither a folder nor a table that is read (csv, tsv, tab, jsonl, ndjson, json, parquet",
        ),
    ],
)
def test_a_table_that_cannot_be_read_says_what_it_holds(folder, name, content, line):
    put(folder, {name: content})
    assert line in refused(folder / name)


def test_the_columns_and_the_delimiter_can_be_given(folder):
    put(folder, {"own.csv": table("{}#{}", "thumb#says")})
    run(folder / "own.csv", folder / "out", "--image-column", "thumb", "--caption-column", "says", "--delimiter", "#")
    put(folder, {"own.tsv": table("{}\t{}", "Thumb\tSays")})
    run(
        folder / "own.tsv", folder / "tabs", "--image-column", "thumb", "--caption-column", "says", "--delimiter", "tab"
    )
    assert stored(folder / "out") == stored(folder / "tabs") == SAMPLES


def test_a_caption_of_any_length_costs_its_row(folder):
    put(folder, {"long.csv": f'image,caption\nimg/000.jpg,"{"x" * 140_000}"\nimg/001.jpg,short\n'})
    said = run(folder / "long.csv", folder / "out")
    assert "1 of 2 rows became samples, 1 are left out\n" in said
    assert f"  {folder}/img/000.jpg: caption too long: 140000 characters, limit 100000\n" in said


def says(*turns: object, keys: tuple[str, str] = ("from", "value")) -> list[dict]:
    return [dict(zip(keys, turn, strict=True)) for turn in zip(turns[::2], turns[1::2], strict=True)]


ASKED = "<image>\nWhat is it?"
LLAVA = {  # the turns, and the expected answer or the reason that is listed
    "plain": (says("human", ASKED, "gpt", "A cat."), "A cat."),
    "system first": (says("system", "You are a helpful assistant.", "human", ASKED, "gpt", "A cat."), "A cat."),
    "gpt first": (
        says("gpt", "Hello.", "human", ASKED, "gpt", "A cat."),
        "turn 1 ('gpt') is where a question should be",
    ),
    "left open": (says("human", ASKED, "gpt", "A cat.", "human", "And its colour?"), "turn 3 ('human') is the last"),
    "two in a row": (
        says("human", ASKED, "human", "What?", "gpt", "A cat."),
        "turn 2 ('human') is where an answer should",
    ),
    "mark in the middle": (says("human", "What is in <image> here?", "gpt", "A cat."), "A cat."),
    "mark in the answer": (
        says("human", "What?", "gpt", "The <image> tag shows a cat."),
        "The <image> tag shows a cat.",
    ),
    "mark in both": (says("human", ASKED, "gpt", "With the <image> tag of SVG."), "With the <image> tag of SVG."),
    "two marks": (
        says("human", "<image>\n<image>\nCompare.", "gpt", "Same."),
        "more than one <image>, a sample has one",
    ),
    "no mark": (says("human", "What is it?", "gpt", "A cat."), "A cat."),
    "mark alone": (says("human", "<image>", "gpt", "A cat."), "says nothing: turn 1 ('human')"),
    "empty answer": (says("human", ASKED, "gpt", ""), "says nothing: turn 2 ('gpt')"),
    "empty list": (
        [],
        "nothing in any of caption, text, prompt (or --caption-column), its columns are 'id', 'image'",
    ),
    "role and content": (says("user", ASKED, "assistant", "A cat.", keys=("role", "content")), "A cat."),
    "from user": (says("user", ASKED, "assistant", "A cat."), "A cat."),
    "capitals": (says("Human", ASKED, "GPT", "A cat."), "A cat."),
    "other roles": (says("human", ASKED, "chatgpt", "A cat."), "A cat."),
    "tokens inside": (says("human", "What <|im_end|> is it?", "gpt", "A cat.<|im_end|>"), "A cat.<|im_end|>"),
    "number": (says("human", "<image>\nHow many?", "gpt", 3), "3"),
    "tool": (
        says("human", ASKED, "tool", "{}", "gpt", "A cat."),
        "conversations has an unknown role: turn 2 is 'tool'",
    ),
}


def test_conversations_are_read_or_the_turn_is_named(folder):
    rows = [{"id": name, "image": "img/000.jpg", "conversations": turns} for name, (turns, _) in LLAVA.items()]
    put(folder, {"llava.json": json.dumps(rows, indent=1)})
    said = run(folder / "llava.json", folder / "out")
    listed = json.loads(CliRunner().invoke(app, ["data", "ledger", f"{folder}/out", "--json"]).stdout)["entries"]
    found = {int(entry["uid"].removeprefix("import/")): entry["reason"] for entry in listed}
    captions = iter([caption for _, caption in stored(folder / "out")])
    for number, (name, (_, expected)) in enumerate(LLAVA.items()):
        actual = found.get(number) or next(captions)
        assert (expected in actual) if number in found else (expected == actual), name
    assert "12 of 20 rows became samples, 8 are left out" in said and len(found) == 8
