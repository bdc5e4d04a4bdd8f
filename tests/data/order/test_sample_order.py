"""The order visits every good row once a pass, mixes well, follows the weights, and depends on nothing but its key."""

import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3o.data.order.sample_order import Interleave, SampleOrder, SourceRows
from blip3o.errors import ConfigError, DataError
from blip3o.types import SampleRef
from tests.data.shard_files import UNHURRIED

shards = st.lists(st.tuples(st.integers(0, 30), st.sets(st.integers(0, 29))), min_size=1, max_size=6)


def rows_of(shards: list[tuple[int, set[int]]], name: str = "a") -> SourceRows:
    return SourceRows(name, [rows for rows, _ in shards], [sorted(b for b in bad if b < rows) for rows, bad in shards])


def good_of(shards: list[tuple[int, set[int]]]) -> set[tuple[int, int]]:
    return {(shard, row) for shard, (rows, bad) in enumerate(shards) for row in range(rows) if row not in bad}


def order_of(*sizes: int, seed: int = 0, micro_batch: int = 4, **options: object) -> SampleOrder:
    """Sources of one or more shards of 100 rows."""
    sources = [
        SourceRows(f"s{number}", [100] * (size // 100) + [size % 100], [()] * (size // 100 + 1))
        for number, size in enumerate(sizes)
    ]
    return SampleOrder(sources, **{"weights": [1.0] * len(sizes), "seed": seed, "micro_batch": micro_batch} | options)


def refs(order: SampleOrder, first: int, count: int) -> list[SampleRef]:
    return [ref for number in range(first, first + count) for ref in order.micro_batch_refs(number)]


@given(shards=shards, chunk=st.integers(1, 9), window=st.integers(1, 4), seed=st.integers(0, 5))
@settings(UNHURRIED, max_examples=60)
def test_every_good_row_comes_once_in_every_pass(shards, chunk, window, seed):
    good = good_of(shards)
    if not good:
        with pytest.raises(DataError, match="no good row"):
            rows_of(shards)
        return
    order = SampleOrder([rows_of(shards)], weights=[2], seed=seed, micro_batch=1, chunk=chunk, window=window)
    for number in range(3):
        seen = refs(order, number * len(good), len(good))
        assert Counter((ref.shard, ref.row) for ref in seen) == Counter(good)
        assert {ref.pass_index for ref in seen} == {number}


@given(shards=shards)
@settings(UNHURRIED, max_examples=30)
def test_good_rows_are_listed_per_shard_and_found_by_number(shards):
    if good_of(shards):
        rows = rows_of(shards)
        listed = [(shard, row) for shard in range(len(shards)) for row in rows.good_rows(shard).tolist()]
        assert listed == sorted(good_of(shards))
        assert list(zip(*(array.tolist() for array in rows.locate(np.arange(len(rows)))), strict=True)) == listed
        assert {(shard, row) for shard in range(len(shards)) for row in rows.bad_rows(shard).tolist()} == {
            (shard, row) for shard, (count, bad) in enumerate(shards) for row in bad if row < count
        }


sources = st.lists(st.tuples(shards.filter(good_of), st.integers(1, 6)), min_size=1, max_size=4)


@given(sources=sources, key=st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 7)), data=st.data())
@settings(UNHURRIED, max_examples=40)
def test_sources_of_any_weights_are_each_gone_through_pass_by_pass(sources, key, data):
    """Once a pass whatever the other sources do, and the same tail wherever it is entered, as a resumed run does."""
    chunk, window, micro_batch = key
    options = {"seed": 3, "chunk": chunk, "window": window, "micro_batch": micro_batch}
    weights = [weight for _, weight in sources]
    made = [
        SampleOrder([rows_of(rows, f"s{i}") for i, (rows, _) in enumerate(sources)], weights=weights, **options)
        for _ in range(2)
    ]
    seen = refs(made[0], 0, 240 // micro_batch)
    for number, (rows, _) in enumerate(sources):
        good, mine = good_of(rows), [ref for ref in seen if ref.source == number]
        for start in range(0, len(mine), len(good)):
            met = mine[start : start + len(good)]
            assert {ref.pass_index for ref in met} == {start // len(good)}
            assert len({(ref.shard, ref.row) for ref in met} & good) == len(met)
    entry = data.draw(st.integers(0, 240 // micro_batch))
    assert refs(made[1], entry, 240 // micro_batch - entry) == seen[entry * micro_batch :]


def test_the_order_is_the_one_it_always_was():
    """Runs resume by step number: another order under an old recipe would train on other samples, unnoticed."""
    sources = [SourceRows("a", [40, 0, 17], [(3, 39), (), range(5)]), SourceRows("b", [9], [()])]
    order = SampleOrder(sources, weights=[1, 0.35], seed=5, micro_batch=7, chunk=4, window=3)
    seen = repr([tuple(map(int, (r.source, r.shard, r.row, r.pass_index))) for r in refs(order, 0, 60)])
    assert order.fingerprint() == "e8e8d7216910bda48b7738f73df54dabbdadb6741ebae4ae27bcf17641990f88"
    assert (
        hashlib.sha256(seen.encode()).hexdigest() == "408fe1e27f3acfd7fd416cfea6a58e48b828a96b87365ad399307abfff759140"
    )


@given(first=st.integers(0, 200), jump=st.integers(0, 10_000))
@settings(UNHURRIED, max_examples=30)
def test_the_tail_is_the_same_from_wherever_it_is_entered(first, jump):
    entered = order_of(130, 40)
    entered.micro_batch_refs(jump)
    assert refs(entered, first, 5) == refs(order_of(130, 40), 0, first + 5)[4 * first :]


@given(micro_batch=st.sampled_from([1, 2, 3, 4, 6, 12]))
@settings(UNHURRIED, max_examples=6)
def test_batch_sizes_cut_one_sequence(micro_batch):
    assert refs(order_of(130, 40, micro_batch=micro_batch), 0, 240 // micro_batch) == refs(order_of(130, 40), 0, 60)


def test_seeds_passes_and_names_give_orders_of_their_own():
    first = [(ref.shard, ref.row) for ref in refs(order_of(400), 0, 100)]
    again = [(ref.shard, ref.row) for ref in refs(order_of(400), 100, 100)]
    other = [(ref.shard, ref.row) for ref in refs(order_of(400, seed=1), 0, 100)]
    two = refs(order_of(400, 400), 0, 200)
    sides = [[(ref.shard, ref.row) for ref in two if ref.source == source] for source in range(2)]
    assert sides[0] == first
    assert len({tuple(order) for order in (first, again, other, sides[1])}) == 4


@given(weights=st.lists(st.integers(1, 60), min_size=1, max_size=7))
@settings(UNHURRIED, max_examples=25)
def test_every_source_keeps_within_a_slot_of_its_share(weights):
    interleave = Interleave(weights, [str(number) for number in range(len(weights))])
    shares = interleave.counts / interleave.counts.sum()
    assert np.abs(shares - np.array(weights) / sum(weights)).max() <= 1e-4
    sources = interleave.source[np.arange(3 * len(interleave.source)) % len(interleave.source)]
    given = np.cumsum(np.eye(len(weights))[sources], axis=0)
    assert np.abs(given - np.outer(np.arange(1, len(sources) + 1), shares)).max() < 1


@given(weights=st.lists(st.floats(0.05, 1), min_size=1, max_size=5), turns=st.integers(0, 3))
@settings(UNHURRIED, max_examples=20)
def test_each_source_is_asked_for_its_samples_one_after_another(weights, turns):
    interleave = Interleave(weights, [str(number) for number in range(len(weights))])
    start = turns * len(interleave.source)
    following = Counter({source: turns * int(count) for source, count in enumerate(interleave.counts)})
    slots = np.arange(start, start + min(len(interleave.source), 500))
    for source, nth in zip(*(array.tolist() for array in interleave.locate(slots)), strict=True):
        assert nth == following[source]
        following[source] += 1


def test_plain_weights_give_a_short_cycle():
    assert Interleave([0.3, 0.7], "ab").counts.tolist() == [3, 7]


def test_a_shuffle_spreads_shards_and_breaks_up_neighbours():
    order = order_of(6400, chunk=16, window=16, micro_batch=64)
    seen = refs(order, 0, 100)
    position = {(ref.shard, ref.row): number for number, ref in enumerate(seen)}
    numbers = np.array([position[divmod(sample, 100)] for sample in range(6400)])
    # A random permutation has an expected distance of n / 3 between any two, and no correlation with the place.
    apart = np.abs(np.diff(numbers))
    assert np.median(apart) > 32
    assert (apart == 1).mean() < 0.02
    assert abs(np.corrcoef(numbers, np.arange(6400))[0, 1]) < 0.2
    shards = [len({ref.shard for ref in order.micro_batch_refs(number)}) for number in range(100)]
    assert min(shards) >= 8


def test_a_window_touches_few_shards():
    order = order_of(10_000, chunk=50, window=4, micro_batch=50)
    for window in range(10):
        assert len({ref.shard for ref in refs(order, window * 4, 4)}) <= 4


def test_the_fingerprint_names_the_order():
    same = {order_of(130, 40).fingerprint() for _ in range(2)}
    assert len(same) == 1
    changes = [
        {"seed": 1},
        {"micro_batch": 2},
        {"chunk": 5},
        {"window": 5},
        {"weights": [1, 2]},
    ]
    others = {order_of(130, 40, **change).fingerprint() for change in changes}
    others |= {order_of(130, 41).fingerprint(), order_of(40, 130).fingerprint()}
    bad = [rows_of([(9, bad), (9, other)]) for bad, other in [({1}, {2}), ({1, 2}, set()), (set(), {1, 2})]]
    others |= {SampleOrder([rows], weights=[1], seed=0, micro_batch=4).fingerprint() for rows in bad}
    assert len(others | same) == len(changes) + 2 + 3 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1]}, "2 sources and 1 weights"),
        ({"weights": [1, 0]}, "every weight must be above 0"),
        ({"weights": [1, float("inf")]}, "every weight must be above 0"),
        ({"weights": [1, 1e-9]}, "weight 1e-09 of source 's1' is under 1/10000"),
        ({"micro_batch": 0}, "none may be below 1"),
    ],
)
def test_values_that_give_no_order_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        order_of(10, 10, **options)


def test_names_may_not_repeat():
    with pytest.raises(ConfigError, match="source names repeat: a, a"):
        SampleOrder([rows_of([(3, set())])] * 2, weights=[1, 1], seed=0, micro_batch=1)


PLAN = """
import time
import numpy as np
from blip3o.data.order.sample_order import SampleOrder, SourceRows
from blip3o.data.order.shuffle_quality import measure_shuffle

begin = time.process_time()
rows = SourceRows("large", [10_000] * 3000, [np.arange({excluded})] * 3000)
order = SampleOrder([rows], weights=[1], seed=0, micro_batch=32)
numbers = range(0, len(rows) // 32, len(rows) // 3200)
seen = {{(ref.shard, ref.row) for number in numbers for ref in order.micro_batch_refs(number)}}
assert len(seen) >= 3200, len(seen)
[quality] = measure_shuffle(order, batch=256)
assert 0.9 < quality.displacement < 1.1, quality
# The peak since exec; that of getrusage begins with the memory of the process that forked this one.
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(time.process_time() - begin, int(peak) / 1024)
"""


@pytest.mark.parametrize("excluded", [2, 5_000])
def test_thirty_million_samples_are_planned_in_seconds_and_little_memory(excluded):
    """In a process of its own, whose peak is the plan's; half of the rows left out is what a filter may do."""
    done = subprocess.run([sys.executable, "-c", PLAN.format(excluded=excluded)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 20
    assert megabytes < 600
