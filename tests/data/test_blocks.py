"""Ranges through the block cache are the file's bytes, and a block is asked for once while it is held."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3o.data import blocks, storage
from blip3o.errors import StorageError

SIZE = 1000


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("blocks") / "file"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)


RANGE = st.tuples(st.integers(0, SIZE - 1), st.integers(0, 300)).map(lambda r: (r[0], min(r[1], SIZE - r[0])))


@settings(deadline=None, max_examples=100)
@given(calls=st.lists(st.lists(RANGE, min_size=1, max_size=6), min_size=1, max_size=5), capacity=st.integers(1, 2000))
def test_ranges_are_the_bytes_of_the_file(file, calls, capacity):
    content = file.read_bytes()
    blocks.BLOCK_BYTES = 64  # hypothesis runs many examples under one monkeypatch
    cache = blocks.BlockCache(capacity=capacity)
    for ranges in calls:
        assert cache.read(str(file), SIZE, ranges) == [content[offset : offset + size] for offset, size in ranges]


def test_neighbours_are_one_request_and_a_held_block_is_none(file, monkeypatch):
    asked = []
    read = storage.read_ranges
    monkeypatch.setattr(storage, "read_ranges", lambda uri, ranges: asked.append(ranges) or read(uri, ranges))
    cache = blocks.BlockCache(capacity=64 * 100)
    cache.read(str(file), SIZE, [(10, 100), (130, 10), (900, 100)])
    assert asked == [[(0, 192), (896, 104)]]
    cache.read(str(file), SIZE, [(0, 192), (950, 50)])
    assert len(asked) == 1


def test_the_least_recently_used_block_goes_first(file, monkeypatch):
    cache = blocks.BlockCache(capacity=64 * 2)
    for offset in (0, 64, 0, 128):  # 64 is the oldest when 128 comes
        cache.read(str(file), SIZE, [(offset, 1)])
    asked = []
    read = storage.read_ranges
    monkeypatch.setattr(storage, "read_ranges", lambda uri, ranges: asked.append(ranges) or read(uri, ranges))
    cache.read(str(file), SIZE, [(0, 1), (128, 1)])
    assert asked == []
    cache.read(str(file), SIZE, [(64, 1)])
    assert asked == [[(64, 64)]]


def test_a_file_that_was_cut_is_an_error(file):
    with pytest.raises(StorageError, match="asked"):
        blocks.BlockCache().read(str(file), SIZE + 50, [(SIZE, 40)])
