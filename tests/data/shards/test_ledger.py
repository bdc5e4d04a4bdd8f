"""What is written to the ledger is read back, once per sample and stage, however often and wherever it was met."""

import json
import re

import pyarrow as pa
import pytest

from blip3o import storage
from blip3o.data.shards.ledger import Ledger, LedgerEntry, by_kind, read_ledger, write_ledger
from blip3o.errors import DataError
from tests.data.shard_files import stored

NOTE = {"uid": "emoji/0/7", "uri": "s3://b/k.tar", "offset": 3, "size": 2**40, "reason": "empty caption ·"}


def test_a_file_of_entries_comes_back(tmp_path):
    uri = f"{tmp_path}/ledger.parquet"
    entries = [LedgerEntry(**NOTE, stage=stage) for stage in ("a", "b")]
    write_ledger(uri, entries)
    assert read_ledger(uri) == entries
    write_ledger(uri, [])
    assert read_ledger(uri) == []


def test_entries_of_a_version_that_did_not_count_cover_one_input_each(tmp_path):
    storage.write_bytes(f"{tmp_path}/train/whole.json", WHOLE)
    (entry,) = read_ledger(str(tmp_path))
    assert entry.count == 1
    old = pa.Table.from_pylist([{**NOTE, "stage": "index"}])
    storage.write_bytes(f"{tmp_path}/ledger.parquet", stored(old))
    assert [entry.count for entry in read_ledger(f"{tmp_path}/ledger.parquet")] == [1]


def test_entries_are_counted_by_kind_with_an_example():
    reasons = [("empty caption", 2), ("image too large: 9x9 pixels", 3), ("image too large: 8x9 pixels", 1)]
    noted = [LedgerEntry(**{**NOTE, "reason": reason}, stage="index", count=count) for reason, count in reasons]
    assert [str(kind) for kind in by_kind(noted)] == [
        "2 x image too large (4 inputs), e.g. 9x9 pixels",
        "1 x empty caption (2 inputs)",
    ]
    assert [str(kind) for kind in by_kind(noted[1:2])] == ["1 x image too large: 9x9 pixels (3 inputs)"]
    assert by_kind([]) == []


def test_where_nothing_was_written_nothing_is_read(tmp_path):
    assert read_ledger(f"{tmp_path}/none.parquet") == []
    assert read_ledger(f"{tmp_path}/none") == []


def test_processes_that_meet_one_sample_leave_one_entry(tmp_path):
    for _ in range(2):
        ledger = Ledger(str(tmp_path))
        for _ in range(2):
            ledger.record(**NOTE)
    Ledger(str(tmp_path)).record(**{**NOTE, "uid": "emoji/0/8"})
    Ledger(str(tmp_path), "encode").record(**NOTE)
    found = [(entry.stage, entry.uid) for entry in read_ledger(str(tmp_path))]
    assert found == [("encode", "emoji/0/7"), ("train", "emoji/0/7"), ("train", "emoji/0/8")]


def test_a_repeated_note_is_written_once(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(storage, "write_bytes", lambda uri, data: written.append(uri))
    ledger = Ledger(str(tmp_path))
    for _ in range(3):
        ledger.record(**NOTE)
    assert len(written) == 1


WHOLE = json.dumps({**NOTE, "stage": "a"}).encode()
OTHER_KIND = json.dumps({**NOTE, "stage": None}).encode()
DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", b'{"a": 1}', "holds an object that is not a ledger entry: 'uid' is missing, .*: name a ledger"),
        ("x.json", b"[1]", "holds an object that is not a ledger entry"),
        (
            "x.json",
            OTHER_KIND,
            "holds an object that is not a ledger entry: 'stage' is missing, unknown or of another type",
        ),
        ("x.json", WHOLE[:-1], "cannot be read as JSON: .*: name a ledger"),
        ("x.json", b"\xff", "cannot be read as JSON"),
        ("x.json", DEEP, "cannot be read as JSON"),
        ("x.parquet", b"PAR1 no footer PAR1", "cannot be read as a Parquet file: .*: name a ledger"),
        ("x.parquet", b"", "cannot be read as a Parquet file"),
    ],
)
def test_what_is_no_ledger_is_named_by_its_file(tmp_path, name, content, message):
    uri = f"{tmp_path}/train/{name}"
    storage.write_bytes(uri, content)
    storage.write_bytes(f"{tmp_path}/train/whole.json", WHOLE)
    with pytest.raises(DataError, match=f"^{re.escape(uri)} {message}") as caught:
        read_ledger(uri if name.endswith(".parquet") else str(tmp_path))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("end", [0, 4, -300, -8, -1])
def test_a_cut_file_of_entries_is_named(tmp_path, end):
    uri = f"{tmp_path}/ledger.parquet"
    write_ledger(uri, [LedgerEntry(**NOTE, stage="a")])
    storage.write_bytes(uri, storage.read_bytes(uri)[:end])
    with pytest.raises(DataError, match=f"^{re.escape(uri)} "):
        read_ledger(uri)
