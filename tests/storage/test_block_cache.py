"""Ranges through the block cache are the file's bytes, and a block is asked for once while it is held."""

import threading
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3o import storage
from blip3o.data.order.sample_order import SampleOrder, SourceRows
from blip3o.errors import StorageError
from blip3o.storage.block_cache import BLOCK_BYTES, BlockCache, block_bytes_for

SIZE = 1000


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("blocks") / "file"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


def small_blocks(capacity):
    return BlockCache(capacity=capacity, block_bytes=64)


@pytest.fixture
def asked(monkeypatch):
    """The ranges of each request of this test, in order."""
    seen, read = [], storage.read_ranges
    monkeypatch.setattr(storage, "read_ranges", lambda uri, ranges: seen.append(ranges) or read(uri, ranges))
    return seen


RANGE = st.tuples(st.integers(0, SIZE - 1), st.integers(0, 300)).map(lambda r: (r[0], min(r[1], SIZE - r[0])))


@settings(deadline=None, max_examples=100)
@given(calls=st.lists(st.lists(RANGE, min_size=1, max_size=6), min_size=1, max_size=5), capacity=st.integers(1, 2000))
def test_ranges_are_the_bytes_of_the_file(file, calls, capacity):
    content = file.read_bytes()
    cache = small_blocks(capacity)
    for ranges in calls:
        assert cache.read(str(file), SIZE, ranges) == [content[offset : offset + size] for offset, size in ranges]


def test_neighbours_are_one_request_and_a_held_block_is_none(file, asked):
    cache = small_blocks(64 * 100)
    cache.read(str(file), SIZE, [(10, 100), (130, 10), (900, 100)])
    assert asked == [[(0, 192), (896, 104)]]
    cache.read(str(file), SIZE, [(0, 192), (950, 50)])
    assert len(asked) == 1


def test_the_least_recently_used_block_goes_first(file, asked):
    cache = small_blocks(64 * 2)
    for offset in (0, 64, 0, 128):  # 64 is the oldest when 128 comes
        cache.read(str(file), SIZE, [(offset, 1)])
    asked.clear()
    cache.read(str(file), SIZE, [(0, 1), (128, 1)])
    assert asked == []
    cache.read(str(file), SIZE, [(64, 1)])
    assert asked == [[(64, 64)]]


@pytest.fixture
def crossing(file, monkeypatch):
    """Two threads: while the first one's request for block 0 is under way, the second asks for blocks 0 and 2.

    Gives the cache, the requests in order, and a function that lets the first request end, with an error if it is told
    one, and returns what the two threads got.
    """
    cache, asked, read = small_blocks(64 * 100), [], storage.read_ranges
    other, may_end = threading.Event(), Future()

    def slow(uri, ranges):
        asked.append(ranges)
        if len(asked) == 1:
            assert other.wait(60)
            may_end.result(60)
        other.set()
        return read(uri, ranges)

    monkeypatch.setattr(storage, "read_ranges", slow)
    with ThreadPoolExecutor(2) as pool:

        def run(error=None):
            first = pool.submit(cache.read, str(file), SIZE, [(0, 10)])
            while not asked:
                assert not first.done(), first.result()
                threading.Event().wait(0.001)
            second = pool.submit(cache.read, str(file), SIZE, [(0, 20), (130, 10)])
            assert other.wait(60)
            may_end.set_exception(error) if error else may_end.set_result(None)
            return first, second

        yield cache, asked, run


def test_a_block_that_is_on_its_way_is_waited_for_by_other_threads(file, crossing):
    _, asked, run = crossing
    first, second = run()
    content = file.read_bytes()
    assert first.result() == [content[:10]]
    assert second.result() == [content[:20], content[130:140]]
    assert asked == [[(0, 64)], [(128, 64)]]


def test_a_request_that_fails_fails_those_who_wait_and_nobody_later(file, crossing):
    cache, asked, run = crossing
    for reader in run(StorageError("gone")):
        with pytest.raises(StorageError, match="gone"):
            reader.result()
    assert cache.read(str(file), SIZE, [(0, 20), (130, 10)]) == [file.read_bytes()[:20], file.read_bytes()[130:140]]
    assert asked[2:] == [[(0, 64)]]


def test_a_file_that_was_cut_is_an_error(file):
    with pytest.raises(StorageError, match="asked"):
        BlockCache().read(str(file), SIZE + 50, [(SIZE, 40)])


SAMPLE, ROWS, BATCH, CALL = (
    100_000,
    1024,
    32,
    4,
)  # bytes of a sample, samples in a shard, in a micro-batch; see stream.py


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards of one window each, without content."""
    files = [tmp_path_factory.mktemp("shards") / str(number) for number in range(2)]
    for file in files:
        file.touch()
        with file.open("r+b") as opened:
            opened.truncate(ROWS * SAMPLE)
    return files


def read_along(shards, readers, block_bytes):
    """Reads a pass as that many actors do that are given `CALL` micro-batches in turn, as by stream.py."""
    rows = SourceRows("s", [ROWS] * len(shards), [[]] * len(shards))
    order = SampleOrder([rows], weights=[1], seed=0, micro_batch=BATCH, chunk=32, window=32)
    caches = [BlockCache(block_bytes=block_bytes) for _ in range(readers)]
    for number in range(len(shards) * ROWS // BATCH):
        wanted = defaultdict(list)
        for ref in order.micro_batch_refs(number):
            wanted[ref.shard].append((ref.row * SAMPLE, SAMPLE))
        for shard, ranges in wanted.items():
            caches[number // CALL % readers].read(str(shards[shard]), ROWS * SAMPLE, ranges)


@pytest.mark.parametrize(("readers", "most"), [(1, 1.3), (2, 2.5), (4, 3.0), (16, 3.5)])
def test_readers_that_share_a_window_read_little_more_than_they_need(shards, asked, readers, most):
    read_along(shards, readers, block_bytes_for(readers))
    read = sum(size for ranges in asked for _, size in ranges)
    assert 1 <= read / (len(shards) * ROWS * SAMPLE) < most
    # In large blocks, many of them would read half as much again, and more.
    if readers == 4:
        asked.clear()
        read_along(shards, readers, BLOCK_BYTES)
        assert sum(size for ranges in asked for _, size in ranges) > 1.4 * read
