"""A checkpoint's files are read as they were written, or the damaged one is named."""

import pytest

from blip3o import storage
from blip3o.train.checkpoint.files import (
    DamagedCheckpointError,
    RankFiles,
    download_files,
    list_rank_files,
    rank_list_uri,
    read_rank_lists,
    upload_files,
)

CONTENT = {"latest": b"state", "state/a.pt": b"0123456789", "state/b.pt": b""}


@pytest.fixture
def saved(tmp_path):
    """A store with the files of rank 1 of 2, and their list."""
    local = tmp_path / "local"
    for path, data in CONTENT.items():
        (local / path).parent.mkdir(parents=True, exist_ok=True)
        (local / path).write_bytes(data)
    files = list_rank_files(local, rank=1, world=2)
    uri = str(tmp_path / "store")
    upload_files(local, files, uri)
    return uri, files


def test_files_come_back_as_they_were(saved, tmp_path):
    uri, files = saved
    assert RankFiles.from_bytes(files.to_bytes()) == files
    download_files(uri, files, tmp_path / "back")
    assert {path: (tmp_path / "back" / path).read_bytes() for path in CONTENT} == CONTENT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "a.pt is missing"),
        (b"012345678", "a.pt has 9 bytes, 10 were written"),
        (b"0123456780", "a.pt has sha256 .*, 84d89877f0d4… was written"),
    ],
)
def test_a_file_that_differs_from_the_written_one_is_named(saved, tmp_path, change, message):
    uri, files = saved
    storage.delete(f"{uri}/state/a.pt")
    if change is not None:
        storage.write_bytes(f"{uri}/state/a.pt", change)
    with pytest.raises(DamagedCheckpointError, match=message):
        download_files(uri, files, tmp_path / "back")


def put_list(uri, rank, *, said=None, world=2):
    files = RankFiles(rank=rank if said is None else said, world=world, files=())
    storage.write_bytes(rank_list_uri(uri, rank), files.to_bytes())


def test_a_checkpoint_is_complete_if_the_lists_of_all_ranks_exist(tmp_path):
    uri = str(tmp_path)
    with pytest.raises(DamagedCheckpointError, match="rank-00000.json is missing"):
        read_rank_lists(uri)
    put_list(uri, 0)
    put_list(uri, 2)  # of an earlier attempt with more workers
    with pytest.raises(DamagedCheckpointError, match="rank-00001.json is missing"):
        read_rank_lists(uri)
    put_list(uri, 1)
    assert [found.rank for found in read_rank_lists(uri)] == [0, 1]
    put_list(uri, 1, world=3)
    with pytest.raises(DamagedCheckpointError, match="is of rank 1 of 3, expected 1 of 2"):
        read_rank_lists(uri)
    storage.write_bytes(rank_list_uri(uri, 1), b"{}")
    with pytest.raises(DamagedCheckpointError, match="is no list of a rank's files"):
        read_rank_lists(uri)
