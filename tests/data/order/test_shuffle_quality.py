"""The figures of a shuffle tell a good order from a bad one, and the default order is a good one."""

import pytest

from blip3o.data.order.sample_order import SampleOrder, SourceRows
from blip3o.data.order.shuffle_quality import measure_shuffle


def quality(*, chunk, window, batch=64, shards=50, seed=0):
    rows = SourceRows("a", [200] * shards, [()] * shards)
    order = SampleOrder([rows], weights=[1], seed=seed, micro_batch=8, chunk=chunk, window=window)
    return measure_shuffle(order, batch=batch)[0]


def test_a_uniform_shuffle_and_shards_in_turn_are_told_apart():
    uniform = quality(chunk=1, window=100_000)
    assert uniform.displacement == pytest.approx(1, abs=0.1)
    assert uniform.neighbours == pytest.approx(uniform.uniform_neighbours, abs=0.005)
    assert uniform.shards == pytest.approx(50 * (1 - (49 / 50) ** 64), rel=0.05)
    blocks = quality(chunk=200, window=1, batch=200)
    assert blocks.neighbours == pytest.approx(199 / 200, abs=0.05)
    assert blocks.shards == pytest.approx(1, abs=1)
    assert (blocks.samples, blocks.all_shards) == (10_000, 50)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("chunk", "window"), [(32, 32), (8, 16), (32, 64)])
def test_windows_shuffle_as_well_as_their_size_allows(chunk, window, seed):
    found = quality(chunk=chunk, window=window, seed=seed, shards=200)
    assert found.displacement == pytest.approx(1, abs=0.15)
    # Inside a window all places are alike: a neighbour of the same chunk falls into the batch by its share of it.
    assert found.neighbours < 1.3 * 64 / (chunk * window)
    chunks = window * (1 - (1 - 1 / window) ** 64)
    assert found.shards > 0.9 * 200 * (1 - (1 - 1 / 200) ** chunks)


def test_each_source_is_judged_by_its_share_of_a_batch():
    sources = [SourceRows("a", [100] * 9, [()] * 9), SourceRows("b", [50], [range(40)]), SourceRows("c", [1], [()])]
    order = SampleOrder(sources, weights=[2, 1, 1], seed=0, micro_batch=4)
    found = measure_shuffle(order, batch=32)
    assert [(each.source, each.samples, each.batch) for each in found] == [("a", 900, 16), ("b", 10, 8), ("c", 1, 1)]
    assert "a: 900 samples in 9 shards; samples move" in str(found[0])
