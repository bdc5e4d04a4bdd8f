"""Large objects of a real S3 store, read as parallel ranges through a faulty network, and replaced meanwhile."""

import random
import tracemalloc

import boto3
import pytest

from blip3o import storage
from blip3o.errors import StorageError
from blip3o.storage import parallel, s3_connection
from blip3o.storage.s3 import ReplacedFileError
from tests.faults import FaultProxy, Plan

PART = 10_000
DATA = random.Random(0).randbytes(12 * PART + 7)
RANGES = [(start, min(PART, len(DATA) - start)) for start in range(0, len(DATA), PART)]
REQUESTS = 1 + 11  # the first asks for two parts


@pytest.fixture
def proxy(s3, monkeypatch):
    """A proxy before the store, which this process reads through."""
    with FaultProxy(s3_connection.connection().endpoint) as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made
    storage.forget_clients()


@pytest.fixture
def stored(s3):
    """An object's URI."""
    storage.write_bytes(f"{s3}/parallel/a", DATA)
    return f"{s3}/parallel/a"


def read_whole(uri):
    return storage.read_bytes(uri, part_bytes=PART)


def read_parts(uri):
    with storage.open_ranges(uri) as file:
        return b"".join(file.read_ahead(RANGES))


READERS = pytest.mark.parametrize("read", [read_whole, read_parts])


@READERS
@pytest.mark.parametrize("kind", ["reset", "cut"])
def test_a_lost_connection_costs_its_own_range_only(stored, proxy, read, kind):
    proxy.follow(Plan(kinds=(kind,), share=0.5, seed=1))
    assert read(stored) == DATA
    assert 0 < proxy.done.faults[kind] < REQUESTS
    assert proxy.done.requests["GET"] <= REQUESTS + 1 + proxy.done.faults[kind]


def test_a_small_object_is_one_request(stored, proxy):
    proxy.follow(Plan(share=0))
    assert storage.read_bytes(stored, part_bytes=len(DATA) // 2 + 1) == DATA
    assert proxy.done.requests == {"GET": 1}


def test_every_size_is_read_whole(s3):
    for size in (0, 1, 2 * PART - 1, 2 * PART, 2 * PART + 1, 3 * PART):
        storage.write_bytes(f"{s3}/parallel/size", DATA[:size])
        assert read_whole(f"{s3}/parallel/size") == DATA[:size]


def test_patience_begins_with_the_first_failure(stored, proxy, monkeypatch):
    monkeypatch.setenv("BLIP3O_STORE_TIMEOUT_S", "1")
    monkeypatch.setenv("BLIP3O_STORE_PATIENCE_S", "0.5")  # shorter than the attempt that fails
    proxy.follow(lambda request: "stall" if request.range.startswith("bytes=40000") and not request.attempt else None)
    assert read_whole(stored) == DATA
    assert proxy.done.faults == {"stall": 1}


@READERS
def test_a_range_that_never_comes_is_named(stored, proxy, read, monkeypatch):
    monkeypatch.setenv("BLIP3O_STORE_PATIENCE_S", "0.2")
    proxy.follow(lambda request: "cut" if request.range == "bytes=50000-59999" else None)
    with pytest.raises(StorageError, match=rf"^{stored}: bytes 50000-59999: .*\(tried \d+ times in \d+ s\)$"):
        read(stored)


@READERS
@pytest.mark.parametrize("size", [len(DATA), len(DATA) - 1])
def test_an_object_that_is_replaced_meanwhile_is_an_error_and_no_mixture(stored, proxy, read, size):
    bucket, _, key = stored.removeprefix("s3://").partition("/")
    direct = boto3.client("s3", endpoint_url=proxy.upstream)

    def replace(request):
        if request.range == "bytes=100000-109999":  # when others have been answered
            direct.put_object(Bucket=bucket, Key=key, Body=DATA[:size][::-1])

    proxy.follow(replace)
    with pytest.raises(ReplacedFileError, match=f"{stored} was replaced while it was read: read it again"):
        read(stored)


def test_a_large_object_is_in_memory_once(s3):
    size = 64 * 2**20
    storage.write_bytes(f"{s3}/parallel/large", bytes(size))
    tracemalloc.start()
    try:
        found = storage.read_bytes(f"{s3}/parallel/large", part_bytes=2**20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == size
    # The bytes themselves, the first two parts, and what a connection of each thread has received.
    assert peak < size + (2 + 3 * parallel.THREADS) * 2**20


def test_reading_ahead_holds_no_more_parts_than_it_may():
    asked = []
    parts = parallel.read_ahead(lambda offset, size: asked.append(offset) or size, [(i, i) for i in range(20)], ahead=4)
    assert next(parts) == 0
    assert len(asked) <= 4
    parts.close()
    assert len(asked) <= 4
