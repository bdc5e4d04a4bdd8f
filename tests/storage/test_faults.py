"""Reads and writes of a real S3 store through a faulty network: what comes back is what was written, or an error."""

import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from blip3o import storage
from blip3o.errors import StorageError
from blip3o.storage import s3 as objects
from blip3o.storage import s3_connection
from tests.faults import KINDS, FaultProxy, Plan

DATA = random.Random(0).randbytes(300_000)
RANGES = [(0, 1000), (100_000, 150_000), (299_000, 1000)]


@pytest.fixture(scope="module")
def stored(s3):
    """An object's URI."""
    storage.write_bytes(f"{s3}/faults/a", DATA)
    return f"{s3}/faults/a"


@pytest.fixture
def proxy(s3, monkeypatch):
    """A proxy before the store, which this process reads through."""
    with FaultProxy(s3_connection.connection().endpoint) as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made
    storage.forget_clients()


def slices(ranges):
    return [DATA[offset : offset + size] for offset, size in ranges]


@pytest.mark.parametrize("kind", ["hang", "stall"])
def test_a_store_that_falls_silent_is_asked_again(stored, proxy, kind, monkeypatch):
    monkeypatch.setenv("BLIP3O_STORE_TIMEOUT_S", "1")
    proxy.follow(Plan(kinds=(kind,)))
    assert storage.read_ranges(stored, RANGES[:1]) == slices(RANGES[:1])
    assert proxy.done.faults == {kind: 1}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("hang", "stall")])
def test_a_read_outlives_a_fault(stored, proxy, kind):
    proxy.follow(Plan(kinds=(kind,)))
    assert storage.read_ranges(stored, RANGES) == slices(RANGES)
    assert proxy.done.faults == {kind: len(RANGES)}
    assert proxy.done.requests["GET"] == len(RANGES) * (1 if kind == "delay" else 2)


@pytest.mark.parametrize("kind", ["500", "reset", "cut", "short"])
def test_a_whole_file_outlives_a_fault(stored, proxy, kind):
    proxy.follow(Plan(kinds=(kind,)))
    assert storage.read_bytes(stored) == DATA
    assert proxy.done.faults == {kind: 1}


@pytest.mark.parametrize("kind", ["503", "reset"])
def test_writing_listing_and_asking_outlive_a_fault(s3, proxy, kind, tmp_path):
    proxy.follow(Plan(kinds=(kind,), methods=("GET", "HEAD", "PUT", "POST")))
    folder = f"{s3}/faults/{kind}"
    storage.write_bytes(f"{folder}/a", DATA)
    assert storage.stat(f"{folder}/a").size == len(DATA)
    assert [file.uri for file in storage.list_files(folder)] == [f"{folder}/a"]
    (tmp_path / "large").write_bytes(DATA)
    storage.upload(tmp_path / "large", f"{folder}/b")
    assert proxy.done.faults[kind] >= 4
    proxy.follow(Plan(share=0))
    assert storage.read_bytes(f"{folder}/a") == DATA == storage.read_bytes(f"{folder}/b")


def test_many_readers_in_a_storm_get_their_own_bytes(stored, proxy):
    draw = random.Random(1)
    ranges = [(offset, draw.randrange(1, 50_000)) for offset in draw.sample(range(250_000), 60)]
    proxy.follow(Plan(seed=2, share=0.5, repeats=2, kinds=("500", "503", "reset", "cut", "short", "delay")))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda extent: storage.read_ranges(stored, [extent])[0], ranges))
    assert found == slices(ranges)
    assert sum(proxy.done.faults.values()) > 30


@pytest.mark.parametrize("kind", ["500", "503", "reset", "cut", "short"])
def test_a_fault_that_outlasts_the_patience_is_an_error_with_its_figures(stored, proxy, kind, monkeypatch):
    monkeypatch.setenv("BLIP3O_STORE_PATIENCE_S", "0.2")
    proxy.follow(Plan(share=0))
    proxy.plan = lambda request: kind
    with pytest.raises(StorageError, match=rf"^{stored}: .*\(tried \d+ times in \d+ s\)$"):
        storage.read_ranges(stored, RANGES)


def test_a_missing_object_is_not_asked_for_twice(s3, proxy):
    with pytest.raises(StorageError, match="does not exist"):
        storage.read_bytes(f"{s3}/faults/none")
    assert proxy.done.requests == {"GET": 1}


def test_an_empty_object_is_read_as_such(s3, proxy):
    storage.write_bytes(f"{s3}/faults/empty", b"")
    assert storage.read_bytes(f"{s3}/faults/empty") == b""


def test_an_object_that_became_shorter_is_never_filled_up(s3, proxy):
    uri = f"{s3}/faults/shrinks"
    storage.write_bytes(uri, DATA)
    with storage.open_ranges(uri) as file:
        assert (file.size, file.read(0, 1000)) == (len(DATA), DATA[:1000])
        storage.write_bytes(uri, DATA[:2000])
        assert file.read(1500, 500) == DATA[1500:2000]
        for extent in ((1500, 501), (2000, 1), (100_000, 150_000)):
            with pytest.raises(
                objects.TruncatedFileError, match=rf"asked {extent[1]} bytes at {extent[0]}, .*index it"
            ):
                file.read(*extent)


def test_a_plan_is_a_function_of_what_is_asked(proxy):
    asked = [("GET", f"/b/{name}", wanted) for name in "abcdefgh" for wanted in ("bytes=0-9", "bytes=10-19")]
    fates = []
    for order in itertools.islice(itertools.permutations(asked), 0, 200, 100):
        proxy.follow(Plan(seed=5, share=0.5, repeats=3))
        fates.append({request: [proxy.fate(*request) for _ in range(4)] for request in order})
    assert fates[0] == fates[1]
    assert {len([fate for fate in fate_list if fate]) for fate_list in fates[0].values()} == {0, 1, 2, 3}
