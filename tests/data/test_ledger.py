"""What is written to the ledger is read back, once per sample and stage, however often and wherever it was met."""

import pytest

from blip3o.data import storage
from blip3o.data.ledger import Ledger, LedgerEntry, read_ledger, write_ledger
from blip3o.errors import DataError

NOTE = {"uid": "emoji/0/7", "uri": "s3://b/k.tar", "offset": 3, "size": 2**40, "reason": "empty caption ·"}


def test_a_file_of_entries_comes_back(tmp_path):
    uri = f"{tmp_path}/ledger.parquet"
    entries = [LedgerEntry(**NOTE, stage=stage) for stage in ("a", "b")]
    write_ledger(uri, entries)
    assert read_ledger(uri) == entries
    write_ledger(uri, [])
    assert read_ledger(uri) == []


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


def test_a_foreign_object_is_named(tmp_path):
    storage.write_bytes(f"{tmp_path}/train/x.json", b'{"a": 1}')
    with pytest.raises(DataError, match=f"{tmp_path} holds an object that is not a ledger entry"):
        read_ledger(str(tmp_path))
