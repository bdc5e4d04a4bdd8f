"""Folders are copied between stores and disks, byte for byte, and what does not arrive is an error."""

import hashlib
from functools import partial

import pytest

from blip3o import storage
from blip3o.errors import StorageError
from blip3o.storage import copying

FILES = {"index/a.parquet": b"of one", "index/below/b.parquet": bytes(range(256)) * 70_000, "index/empty": b""}


def test_a_folder_goes_to_a_store_and_back(s3, tmp_path):
    here, there, back = str(tmp_path / "here"), f"{s3}/copying/there", str(tmp_path / "back")
    for name, data in FILES.items():
        storage.write_bytes(f"{here}/{name}", data)
    storage.write_bytes(f"{there}/index/a.parquet", b"an older one")
    said = []
    size = copying.copy_folder(f"{here}/index", f"{there}/index", on_progress=lambda *it: said.append(it))
    assert size == sum(map(len, FILES.values())) and said == [(1, 3), (2, 3), (3, 3)]
    copying.copy_folder(there, back)
    assert {name: storage.read_bytes(f"{back}/{name}") for name in FILES} == FILES
    name = "index/below/b.parquet"
    assert copying.copy_file(f"{there}/{name}", f"{back}/{name}") == hashlib.sha256(FILES[name]).hexdigest()


def test_nothing_to_copy_and_another_writer_are_errors(tmp_path, monkeypatch):
    with pytest.raises(StorageError, match="nowhere has no files: correct the URI"):
        copying.copy_folder(str(tmp_path / "nowhere"), str(tmp_path / "to"))
    storage.write_bytes(f"{tmp_path}/from/file", b"whole")
    copy = partial(copying.copy_file, f"{tmp_path}/from/file")

    def and_then_another(uri, target):
        digest = copy(target)
        storage.write_bytes(target, b"longer than it")
        return digest

    monkeypatch.setattr(copying, "copy_file", and_then_another)
    with pytest.raises(StorageError, match="to/file is not what was copied"):
        copying.copy_folder(f"{tmp_path}/from", f"{tmp_path}/to")
