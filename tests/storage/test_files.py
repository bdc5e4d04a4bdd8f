"""One behaviour on a real S3 store and on local files: reads, ranges, listings, and errors that name URI and fix."""

import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from blip3o import storage
from blip3o.errors import StorageError
from blip3o.storage import files, s3_connection
from tests.data.shard_files import UNHURRIED
from tests.faults import FaultProxy

DATA = bytes(range(256)) * 40


@pytest.fixture(params=["local", "s3"])
def base(request, tmp_path):
    """A folder of its own for each test, on either kind of store."""
    if request.param == "local":
        return str(tmp_path)
    return f"{request.getfixturevalue('s3')}/storage/{tmp_path.name}"


@pytest.fixture
def environment(s3, monkeypatch):
    """Sets variables of the AWS chain for one test; the client that was made with them is forgotten after it."""

    def change(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        storage.forget_clients()

    yield change
    storage.forget_clients()


def test_a_file_may_grow_in_another_folder(tmp_path):
    target, aside = tmp_path / "samples/0000.png", tmp_path / "partial"
    storage.write_bytes(str(target), b"whole", aside=str(aside))
    assert target.read_bytes() == b"whole" and not list(aside.iterdir())
    with files._stream(str(tmp_path / "samples/0001.png"), lambda _: nullcontext(), str(aside)) as file:
        file.write(b"half")
        assert [path.name.startswith("0001.png.") for path in aside.iterdir()] == [True]
        assert [path.name for path in target.parent.iterdir()] == ["0000.png"]


def test_what_is_written_is_read_listed_and_removed(base):
    uris = [f"{base}/{name}" for name in ("b.tar", "deep/c.txt", "deep/er/a.tar")]
    for uri in uris:
        storage.write_bytes(uri, uri.encode())
    assert [storage.read_bytes(uri) for uri in uris] == [uri.encode() for uri in uris]
    assert [file.uri for file in storage.list_files(base)] == uris
    assert storage.list_files(base, suffix=".tar") == [storage.stat(uris[0]), storage.stat(uris[2])]
    assert storage.stat(uris[0]).size == len(uris[0].encode())
    assert storage.exists(uris[1]) and not storage.exists(f"{base}/deep") and not storage.exists(f"{base}/none")
    storage.delete(f"{base}/deep")
    storage.delete(f"{base}/none")
    assert [file.uri for file in storage.list_files(base)] == uris[:1]
    storage.delete(uris[0])
    assert storage.list_files(base) == [] == storage.list_files(f"{base}/none")


def test_a_file_written_again_has_new_content_and_another_version(base):
    storage.write_bytes(f"{base}/a", b"one")
    before = storage.stat(f"{base}/a")
    assert storage.list_files(base) == [before]
    storage.write_bytes(f"{base}/a", b"two")
    after = storage.stat(f"{base}/a")
    assert (after.size, after.uri) == (before.size, before.uri) and after.version != before.version
    assert storage.list_files(base) == [after]
    assert storage.read_bytes(f"{base}/a") == b"two"


def test_an_empty_file_is_empty(base):
    storage.write_bytes(f"{base}/nothing", b"")
    assert storage.read_bytes(f"{base}/nothing") == b"" and storage.stat(f"{base}/nothing").size == 0


def test_ranges_are_the_slices_of_the_file(base):
    storage.write_bytes(f"{base}/a", DATA)

    @UNHURRIED
    @given(st.lists(st.tuples(st.integers(0, len(DATA)), st.integers(0, 300)), max_size=5))
    def check(wanted):
        ranges = [(offset, min(size, len(DATA) - offset)) for offset, size in wanted]
        assert storage.read_ranges(f"{base}/a", ranges) == [DATA[o : o + size] for o, size in ranges]

    check()


@pytest.mark.parametrize("beyond", [(len(DATA) - 4, 5), (len(DATA), 1), (len(DATA) + 9, 1)])
def test_a_range_beyond_the_end_is_an_error_with_its_numbers(base, beyond):
    storage.write_bytes(f"{base}/a", DATA)
    with pytest.raises(StorageError, match=rf"^{re.escape(base)}/a: .*index it again") as caught:
        storage.read_ranges(f"{base}/a", [(0, 10), beyond])
    assert f"asked {beyond[1]} bytes at {beyond[0]}" in str(caught.value)


def test_a_missing_file_is_named(base):
    calls = [storage.read_bytes, storage.stat, lambda uri: storage.read_ranges(uri, [(0, 1)])]
    for call in calls:
        with pytest.raises(StorageError, match=f"^{re.escape(base)}/none does not exist: check the spelling"):
            call(f"{base}/none")


def test_a_folder_that_is_a_file_is_named(tmp_path):
    storage.write_bytes(f"{tmp_path}/a", b"x")
    with pytest.raises(StorageError, match=f"^{re.escape(str(tmp_path))}/a/b: .*"):
        storage.write_bytes(f"{tmp_path}/a/b", b"x")


def test_many_writers_of_one_file_leave_one_whole(base):
    contents = [bytes([number]) * 50_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: storage.write_bytes(f"{base}/a", data), contents * 4))
    assert storage.read_bytes(f"{base}/a") in contents
    assert [file.uri for file in storage.list_files(base)] == [f"{base}/a"]


def test_a_local_write_that_breaks_off_leaves_what_was_there(tmp_path, monkeypatch):
    class Breaking(fs.LocalFileSystem):
        def move(self, src, dest):
            raise OSError("the disk went away")

    uri = f"{tmp_path}/a"
    storage.write_bytes(uri, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(files, "_LOCAL", Breaking())
        with pytest.raises(StorageError, match=f"{re.escape(uri)}: the disk went away"):
            storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"old"
    assert storage.list_files(str(tmp_path)) == [storage.stat(uri)]


def test_a_stream_whose_block_fails_leaves_no_object(s3, tmp_path):
    """Neither a small one, which is sent when it is closed, nor a large one, of which parts are sent before."""
    folder = f"{s3}/failed/{tmp_path.name}"
    storage.write_bytes(f"{folder}/a/below", b"stays")
    for size in (3, 12_000_000):
        with pytest.raises(ValueError, match="no more"), storage.open_write(f"{folder}/a") as file:
            file.write(bytes(size))
            raise ValueError("no more")
    assert [file.uri for file in storage.list_files(folder)] == [f"{folder}/a/below"]


def test_an_object_stays_if_its_replacement_is_not_completed(s3, monkeypatch):
    monkeypatch.setenv("BLIP3O_STORE_PATIENCE_S", "0")
    storage.write_bytes(f"{s3}/replaced/a", b"old")
    with FaultProxy(s3_connection.connection().endpoint) as proxy:
        proxy.follow(lambda request: "500" if "partNumber" in request.path else None)
        for name, value in proxy.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StorageError), storage.open_write(f"{s3}/replaced/a") as file:
            file.write(bytes(12_000_000))
        assert storage.read_bytes(f"{s3}/replaced/a") == b"old"
    storage.forget_clients()


def test_a_missing_bucket_is_named(s3):
    uri = "s3://blip3o-no-such-bucket/a"
    calls = [storage.read_bytes, storage.list_files, lambda uri: storage.write_bytes(uri, b"x")]
    for call in calls:
        with pytest.raises(StorageError, match=f"^{re.escape(uri)}.* does not exist: .*create it"):
            call(uri)


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys_are_named(s3, environment, name):
    storage.write_bytes(f"{s3}/storage/a", b"x")
    environment(**{name: "wrong"})
    calls = [
        storage.read_bytes,
        storage.exists,
        storage.stat,
        storage.list_files,
        lambda uri: storage.write_bytes(uri, b"y"),
    ]
    for call in calls:
        with pytest.raises(StorageError, match=f"^{s3}/storage/a: .*{name}"):
            call(f"{s3}/storage/a")


def test_a_store_that_does_not_answer_is_named(s3, environment):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        environment(AWS_ENDPOINT_URL=nobody, AWS_ENDPOINT_URL_S3=nobody, BLIP3O_STORE_PATIENCE_S="0.1")
        with pytest.raises(StorageError, match=f"^{s3}/a: the store does not answer: check AWS_ENDPOINT_URL"):
            storage.exists(f"{s3}/a")


def test_what_is_no_file_is_told_apart_from_a_store_that_fails(base, tmp_path):
    storage.write_bytes(f"{tmp_path}/a", b"x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    names = ("é" * 128, "loop", "a/b", "")
    for uri in [*(f"{tmp_path}/{name}" for name in names), "s3://blip3o-test"]:
        with pytest.raises(storage.BadUriError):
            storage.read_bytes(uri)
    with pytest.raises(storage.MissingFileError):
        storage.read_bytes(f"{base}/none")
    with pytest.raises(StorageError) as caught:
        storage.list_files(f"{tmp_path}/a")
    assert str(caught.value) == f"{tmp_path}/a: Not a directory: correct the path"


def test_a_write_to_what_can_be_no_file_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=f"^{re.escape(str(tmp_path))}/folder: Is a directory"):
        storage.write_bytes(f"{tmp_path}/folder", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(StorageError, match="^/proc/x/y.html: the folder /proc/x cannot be made: write to another"):
        storage.write_bytes("/proc/x/y.html", b"x")


def test_keys_that_no_uri_stands_for_are_left_out_with_a_warning(s3, monkeypatch, caplog):
    keys = ["a//b.tar", "a/b.tar", "a/./c.tar", "a/../../d.tar", "a/two\n//lines.tar"]
    objects = [
        storage.s3.ObjectInfo(path=f"blip3o-test/{key}", size=1, etag="e", modified=datetime.now()) for key in keys
    ]
    monkeypatch.setattr(storage.s3, "objects_below", lambda _, recursive: objects)
    assert [file.uri for file in storage.list_files(f"{s3}/a")] == [f"{s3}/a/b.tar"]
    assert [record.getMessage().splitlines() for record in caplog.records] == [
        [f"{s3}/{key} is left out: its key has '//', '.' or '..': rename it"]
        for key in (keys[0], *keys[2:4], "a/two\\n//lines.tar")
    ]


@pytest.mark.parametrize("call", [storage.list_files, storage.list_folders])
def test_a_local_name_that_is_not_utf8_is_named_with_its_folder(tmp_path, call):
    odd = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(odd)
    with open(odd + b"/1.png", "wb"):
        pass
    with pytest.raises(
        StorageError, match=rf"^{re.escape(str(tmp_path))}: a name in it is not UTF-8: rename b'.*caf\\xe9"
    ):
        call(str(tmp_path))
