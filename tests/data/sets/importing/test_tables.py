"""Tables as spreadsheets, databases, data frames and other tools write them: read, or told with what was found."""

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip3o import storage
from blip3o.data.sets.imported import import_set
from blip3o.errors import DataError, StorageError
from tests.data.sets.importing.made import import_table, pictures, samples
from tests.data.shard_files import png


def jsonl(*rows: object) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


ROWS = [{"image": "a.png", "caption": "one, 1"}, {"image": "b.png", "caption": "two"}]
LINES = jsonl(*ROWS)
PLAIN = b'image,caption\na.png,"one, 1"\nb.png,two\n'


def parquet(columns: dict[str, list]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


READ = {
    "semicolon.csv": b"image;caption\na.png;one, 1\nb.png;two\n",
    "semicolon_quoted.csv": b'"image";"caption";"x"\n"a.png";"one, 1";""\n"b.png";"two";"2,5"\n',
    "tab.csv": b"image\tcaption\na.png\tone, 1\nb.png\ttwo\n",
    "bar.csv": b"image|caption\na.png|one, 1\nb.png|two\n",
    "tab.tsv": b"image\tcaption\na.png\tone, 1\nb.png\ttwo\n",
    "tab.tab": b"image\tcaption\na.png\tone, 1\nb.png\ttwo\n",
    "comma.tsv": PLAIN,
    "sep.csv": b'sep=;\r\nimage;caption\r\na.png;one, 1\r\nb.png;"two"\r\n',
    "sep_quoted.csv": b'"sep=|"\nimage|caption\na.png|one, 1\nb.png|two\n',
    "sep_tab.csv": b"sep=\t\nimage\tcaption\na.png\tone, 1\nb.png\ttwo\n",
    "upper.csv": b'Image,CAPTION\na.png,"one, 1"\nb.png,two\n',
    "spaced_header.csv": b'image , caption \na.png, "one, 1"\nb.png, two\n',
    "spaces.csv": b'image, caption\na.png, "one, 1"\nb.png,  "two"\n',
    "spaces_in_rows.csv": b'image,caption\na.png, "one, 1"\nb.png,two\n',
    "bom.csv": b"\xef\xbb\xbf" + PLAIN,
    "utf16.csv": PLAIN.decode().encode("utf-16"),
    "utf16be.tsv": b"\xfe\xff" + "image\tcaption\na.png\tone, 1\nb.png\ttwo".encode("utf-16-be"),
    "utf32.csv": PLAIN.decode().encode("utf-32"),
    "crlf.csv": PLAIN.replace(b"\n", b"\r\n"),
    "cr.csv": PLAIN.replace(b"\n", b"\r"),
    "blank_lines.csv": b"\n\n" + PLAIN.replace(b"\nb", b"\n\n\nb"),
    "no_end.csv": PLAIN.rstrip(),
    "EXPORT.CSV": PLAIN,
    "trailing_delimiters.csv": b'image,caption,,\na.png,"one, 1",,\nb.png,two,,,,\n',
    "index_column.csv": b',image,caption\n0,a.png,"one, 1"\n1,b.png,two\n',
    "single_quotes_in.csv": b'image,caption,note\na.png,"one, 1",it\'s\nb.png,two,"5"" wide"\n',
    "unquoted_quotes.tsv": b'image\tcaption\tnote\na.png\tone, 1\t"so\nb.png\ttwo\t"x" y\n',
    "other_names.csv": b'img,description\na.png,"one, 1"\nb.png,two\n',
    "dots.csv": b'image,caption\n./a.png,"one, 1"\n./deep/.././b.png,two\n',
    "gz.csv.gz": gzip.compress(PLAIN),
    "gz_unnamed.csv": gzip.compress(PLAIN),
    "not_gz.csv.gz": PLAIN,
    "several.jsonl.gz": gzip.compress(LINES[:20]) + gzip.compress(LINES[20:]),
    "GZ.JSON.GZ": gzip.compress(json.dumps(ROWS).encode()),
    "lines.jsonl": LINES,
    "lines.ndjson": LINES,
    "lines.json": LINES,
    "cr.jsonl": LINES.replace(b"\n", b"\r"),
    "crlf.json": b"\r\n" + LINES.replace(b"\n", b"\r\n\r\n"),
    "bom.jsonl": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\n\xef\xbb\xbf"),
    "utf16.json": json.dumps(ROWS).encode("utf-16"),
    "pretty.jsonl": json.dumps(ROWS, indent=1).encode(),
    "pretty_objects.jsonl": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "record_separators.json": b"\x1e" + LINES.replace(b"\n", b"\n\x1e"),
    "data.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "images.json": json.dumps({"dataset": "x", "images": ROWS}).encode(),
    "upper.json": json.dumps([{"Image": row["image"], "Caption": row["caption"]} for row in ROWS]).encode(),
    "by_path.json": json.dumps({row["image"]: row["caption"] for row in ROWS}).encode(),
    "by_path_records.json": json.dumps({row["image"]: {"caption": row["caption"], "n": 1} for row in ROWS}).encode(),
    "frame.json": json.dumps({"image": {"0": "a.png", "1": "b.png"}, "caption": {"0": "one, 1", "1": "two"}}).encode(),
    "lists.jsonl": b'{"image": ["a.png"], "caption": ["one, 1", "1"]}\n{"image": ["b.png"], "caption": "two"}',
    "captions.jsonl": b'{"image": "a.png", "captions": ["one, 1"]}\n{"image": "b.png", "captions": "two"}',
    "captions_in.csv": b'image,captions\na.png,"[""one, 1"", ""1""]"\nb.png,two\n',
    "blank_first.jsonl": jsonl(
        {"image": "", "file": "a.png", "caption": " ", "text": "one, 1"}, {"path": "b.png", "txt": "two"}
    ),
    "objects.jsonl": jsonl(
        {"image": {"path": "a.png"}, "caption": "one, 1"}, {"image": {"bytes": None, "path": "b.png"}, "caption": "two"}
    ),
    "other_id.jsonl": jsonl(
        {"image": 7, "file_name": "a.png", "caption": "one, 1"}, {"image": 8, "file_name": "b.png", "caption": "two"}
    ),
    "coco.json": json.dumps(
        {
            "info": {},
            "images": [{"id": 5, "file_name": "a.png"}, {"id": 6, "file_name": "b.png"}],
            "annotations": [
                {"image_id": 6, "caption": "two"},
                {"image_id": 5, "caption": "one, 1"},
                {"image_id": 5, "caption": "1"},
            ],
        }
    ).encode(),
    "paths.parquet": parquet({"image": ["a.png", "b.png"], "caption": ["one, 1", "two"], "when": [None, None]}),
    "structs.parquet": parquet(
        {"image": [{"bytes": png(0), "path": "x"}, {"bytes": None, "path": "b.png"}], "text": ["one, 1", "two"]}
    ),
    "windows.csv": b'image,caption\n.\\a.png,"one, 1"\ndeep\\..\\b.png,two\n',
}


@pytest.mark.parametrize("name", READ)
def test_a_table_is_read(tmp_path, name):
    done = import_table(tmp_path, name, READ[name])
    assert [(image, caption) for image, caption, _ in samples(done)] == [(png(0), "one, 1"), (png(1), "two")]
    assert done.account() == ["2 of 2 rows became samples, 0 are left out"] and not done.damage


def test_captions_of_pictures_that_coco_does_not_list_are_left_out(tmp_path):
    whole = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [{"image_id": 1, "caption": "one"}, {"image_id": 9, "caption": "nine"}],
    }
    done = import_table(tmp_path, "t.json", json.dumps(whole).encode())
    assert [caption for _, caption, _ in samples(done)] == ["one"]
    assert [entry.reason.split(":")[0] for entry in done.damage] == ["missing caption", "row names no image"]


@pytest.mark.parametrize(
    "data", [b'image,caption\na.png, "one"\nb.png,two\n', b'image;caption\na.png;  "one"\nb.png; two\n']
)
def test_quotes_after_a_space_are_no_part_of_a_text(tmp_path, data):
    assert [caption for _, caption, _ in samples(import_table(tmp_path, "t.csv", data))] == ["one", "two"]


OPTIONS = [
    (b"thumb;picture;says\nx;a.png;one, 1\nx;b.png;two\n", {"image_column": "Picture", "caption_column": "says"}),
    (b"image^caption\na.png^one, 1\nb.png^two\n", {"delimiter": "^"}),
    (b'path,image,text,alt\nx,a.png,y,"one, 1"\nx,b.png,y,two\n', {"image_column": "image", "caption_column": "alt"}),
]


@pytest.mark.parametrize(("data", "options"), OPTIONS)
def test_a_table_is_read_as_the_options_say(tmp_path, data, options):
    done = import_table(tmp_path, "t.csv", data, **options)
    assert [caption for _, caption, _ in samples(done)] == ["one, 1", "two"]
    with pytest.raises(DataError, match="holds a set made with|no column names an image"):
        import_set(f"{tmp_path}/in/t.csv", f"{tmp_path}/out")


REFUSED = {
    "columns.csv": (
        b"id,label\n1,cat\n",
        "as csv: no column names an image: found 'id', 'label', delimited by ','; the picture's",
    ),
    "one_column.csv": (b"id label\n1 cat\n", "found 'id label', delimited by ','"),
    "no_header.csv": (
        b"a.png,one\nb.png,two\n",
        "no names of columns but 'a.png', 'one'.*put a line such as image,caption",
    ),
    "twice.csv": (b"image,caption,caption\na.png,x,y\n", "2 columns are named 'caption': rename"),
    "twice_spaced.csv": (b"image,caption, caption\na.png,x,y\n", "2 columns are named 'caption'"),
    "twice_tabs.tsv": (b"image\tx\tx\na.png\t1\t2\n", "2 columns are named 'x'"),
    "header.csv": (b"image,caption\n", "has no rows: its columns are 'image', 'caption', delimited by ','"),
    "header.tsv": (b"image\tcaption\r\n\r\n", "has no rows: .*delimited by tab"),
    "empty.csv": (b"", "has no rows"),
    "blank.csv": (b" \n\n", "has no rows"),
    "bom_only.csv": (b"\xef\xbb\xbf", "has no rows|no column names an image"),
    "empty.json": (b"[]", "has no rows"),
    "object.json": (b"{}", "it holds a dict, not a list of samples: found nothing"),
    "number.json": (b"3", "it holds a int, not a list"),
    "latin.csv": (b"image,caption\na.png,caf\xe9\n", r"byte 23 \(line 2\) is 0xe9, which is not UTF-8: save .* iconv"),
    "latin.jsonl": (b'{"image": "a.png", "caption": "caf\xe9"}', "byte 34 .*is 0xe9"),
    "utf16_bare.csv": ("image,caption\n".encode("utf-16-le"), "NUL bytes, as UTF-16 without its byte order mark"),
    "utf16_cut.csv": ("image,caption\n".encode("utf-16")[:-1], "byte 28 is 0x0a, which is not UTF-16: save"),
    "cut.csv.gz": (gzip.compress(PLAIN)[:-12], "its gzip data are damaged"),
    "packed.csv": (b"\x28\xb5\x2f\xfd....", "compressed with zstd: unpack it"),
    "book.csv": (b"PK\x03\x04....", "is a ZIP archive, as workbooks are: save it as CSV"),
    "page.csv": (b"<!DOCTYPE html><html>", "it is an HTML page"),
    "pointer.jsonl": (b"version https://git-lfs", "it is a Git LFS pointer: run `git lfs pull`"),
    "cut.json": (b'[{"image": "a.png"', r"row 1: Expecting ',' delimiter: line 1"),
    "commas.jsonl": (LINES.replace(b"\n", b",\n"), "row 2: Expecting value: line 1"),
    "two_lists.json": (b'{"train": [{"a": 1}], "test": [{"a": 1}]}', "found 'train', 'test', 2 of them lists of obj"),
    "boxes.json": (b'{"images": [], "annotations": [{"bbox": []}]}', "its annotations have no 'caption'"),
    "bad.parquet": (b"PAR1", "cannot be read as parquet"),
    "deep.json": (b"[" * 100_000, "nested too deeply"),
    "quote.csv": (b'image,caption\na.png,"x\n', "row 1: unexpected end of data: close each quote"),
    "sep.csv": (b'sep="\nimage,caption\n', "give one character"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_cannot_be_is_refused_with_what_was_found(tmp_path, name):
    data, message = REFUSED[name]
    with pytest.raises(DataError, match=message) as caught:
        import_table(tmp_path, name, data)
    assert str(caught.value).startswith(f"{tmp_path}/in/{name} ") and len(str(caught.value).splitlines()) == 1
    assert not storage.exists(f"{tmp_path}/out/dataset.json")


def test_bytes_that_are_text_are_text_and_others_do_not_enter_the_record(tmp_path):
    """Not every writer of Parquet marks text as such."""
    found = import_table(
        tmp_path,
        "t.parquet",
        parquet(
            {
                "image": [b"a.png", png(1), b"deep/c.png"],
                "caption": [b"caf\xc3\xa9", b"two", b"caf\xe9"],
                "tags": [[b"x"], [b"y", b"\xff"], []],
                "mask": [png(3)] * 3,
                "more": [[{"bytes": png(2)}]] * 3,
            }
        ),
    )
    records = {"tags": [["x"], ["y", None]], "mask": [None] * 2, "more": [[{"bytes": None}]] * 2}
    first, second = samples(found)
    assert [first[:2], second[:2]] == [(png(0), "café"), (png(1), "two")]
    assert {name: [record[name] for _, _, record in (first, second)] for name in records} == records
    assert [entry.reason for entry in found.damage] == ["missing caption: row 3 has a bytes in 'caption', not a text"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (pa.array([0, 3600], pa.timestamp("s", "Mars/City")), "1970-01-01 01:00:00+00:00"),
        (pa.array([0, 3600], pa.timestamp("ms", "Z")), "1970-01-01 00:00:03.600000+00:00"),
        (pa.array([0, 2**58], pa.timestamp("us")), "11103-08-29 17:22:31.711744"),
    ],
)
def test_times_that_python_does_not_know_cost_no_table(tmp_path, values, said):
    found = import_table(tmp_path, "t.parquet", parquet({"image": ["a.png"] * 2, "text": ["x"] * 2, "at": values}))
    assert samples(found)[1][2]["at"] == said


def test_parquet_with_a_column_twice_is_refused(tmp_path):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(["a.png"])] * 2, names=["image", "image"]), sink)
    with pytest.raises(DataError, match="2 columns are named 'image'"):
        import_table(tmp_path, "t.parquet", sink.getvalue())


def test_an_ending_that_is_not_read_and_a_table_that_is_not_there_are_named(tmp_path):
    for name in ("t.xlsx", "t.txt", "a.png"):
        storage.write_bytes(f"{tmp_path}/{name}", b"x")
        with pytest.raises(
            DataError, match=rf"{name} is neither a folder nor a table that is read \(csv, tsv, tab, json"
        ):
            import_set(f"{tmp_path}/{name}", f"{tmp_path}/out")
    with pytest.raises(StorageError, match=r"gone.csv does not exist"):
        import_set(f"{tmp_path}/gone.csv", f"{tmp_path}/out")
    with pytest.raises(DataError, match=r"gone does not exist, or is no folder"):
        import_set(f"{tmp_path}/gone", f"{tmp_path}/out")


def test_a_folder_may_be_called_as_a_table(tmp_path):
    storage.write_bytes(f"{pictures(tmp_path / 'photos.csv')}/a.txt", b"one")
    done = import_set(f"{tmp_path}/photos.csv", f"{tmp_path}/out")
    assert [caption for _, caption, _ in samples(done)] == ["one"]


def test_a_caption_beyond_the_limit_of_csv_costs_its_row(tmp_path):
    data = f'image,caption\na.png,"{"x" * 140_000}"\nb.png,two\n'.encode()
    done = import_table(tmp_path, "t.csv", data)
    assert [caption for _, caption, _ in samples(done)] == ["two"]
    assert [entry.reason for entry in done.damage] == ["caption too long: 140000 characters, limit 100000"]


def test_what_json_does_not_have_becomes_null(tmp_path):
    lines = b'{"image": "a.png", "caption": "x", "s": NaN, "t": [1e999, {"u": -Infinity}], "v": 1}'
    done = import_table(tmp_path, "t.jsonl", lines)
    ((_, _, record),) = samples(done)
    assert [record[name] for name in "stv"] == [None, [None, {"u": None}], 1]
    missing = b'{"image": NaN, "path": "a.png", "caption": NaN, "text": "x"}\n{"image": "b.png", "caption": NaN}'
    done = import_table(tmp_path / "2", "t.jsonl", missing)
    assert [caption for _, caption, _ in samples(done)] == ["x"]
    assert [entry.reason.split(":")[0] for entry in done.damage] == ["missing caption"]
    storage.write_bytes(f"{tmp_path}/side/a.png", png(0))
    storage.write_bytes(f"{tmp_path}/side/a.json", b'{"caption": "x", "s": Infinity}')
    ((_, _, record),) = samples(import_set(f"{tmp_path}/side", f"{tmp_path}/side/out"))
    assert record["s"] is None


def test_further_columns_are_the_record_whatever_they_hold(tmp_path):
    table = {
        "image": ["a.png"],
        "caption": ["x"],
        "day": pa.array([1], pa.date32()),
        "raw": [b"\xff"],
        "n": [{"m": [1.5]}],
    }
    ((_, _, record),) = samples(import_table(tmp_path, "t.parquet", parquet(table)))
    assert (record["day"], record["n"], "raw" in record) == ("1970-01-02", {"m": [1.5]}, True)
    data = b'image,caption,zip,score,,\na.png,"say ""hi""",007,2.50,p,q\n'
    ((_, caption, record),) = samples(import_table(tmp_path / "2", "t.csv", data))
    assert caption == 'say "hi"'
    assert [record[name] for name in ("zip", "score", "", "column 6")] == ["007", 2.5, "p", "q"]
