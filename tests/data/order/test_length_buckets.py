"""Bucketing changes which samples share a micro-batch, and nothing else."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3o.data.order.length_buckets import BucketedOrder, CaptionLengths
from blip3o.data.order.sample_order import SampleOrder, SourceRows
from tests.data.shard_files import UNHURRIED, index, sample, tar

shards = st.lists(st.integers(1, 40), min_size=1, max_size=4)


# Spread as the lengths of long captions are: lognormal, mean about 120.
DRAWN = np.random.default_rng(0).lognormal(4.6, 0.6, 10_007).astype(int)


def length_of(ref):
    return int(DRAWN[(977 * ref.source + 509 * ref.shard + ref.row) % len(DRAWN)])


def lengths(refs):
    return np.array([length_of(ref) for ref in refs])


def orders(sizes, *, micro_batch=4, chunk=8, window=4, seed=0, version="1"):
    """The plain order and the bucketed one over the same sources."""
    sources = [SourceRows(f"s{n}", rows, [()] * len(rows)) for n, rows in enumerate(sizes)]
    options = {"weights": [1 + n for n in range(len(sizes))], "seed": seed, "micro_batch": micro_batch}
    options |= {"chunk": chunk, "window": window}
    return SampleOrder(sources, **options), BucketedOrder(sources, lengths=lengths, version=version, **options)


@given(
    sizes=st.lists(shards, min_size=1, max_size=3),
    micro_batch=st.integers(1, 6),
    chunk=st.integers(1, 6),
    window=st.integers(1, 4),
    entry=st.integers(0, 60),
)
@settings(UNHURRIED, max_examples=20)
def test_a_span_has_the_samples_of_the_plain_order_wherever_it_is_entered(sizes, micro_batch, chunk, window, entry):
    plain, bucketed = orders(sizes, micro_batch=micro_batch, chunk=chunk, window=window)
    entered = orders(sizes, micro_batch=micro_batch, chunk=chunk, window=window)[1]
    first = entry // bucketed.span * bucketed.span
    numbers = range(first, first + 2 * bucketed.span)
    assert entered.micro_batch_refs(entry) == bucketed.micro_batch_refs(entry)
    for start in (first, first + bucketed.span):
        mine, theirs = (
            [order.micro_batch_refs(number) for number in range(start, start + bucketed.span)]
            for order in (bucketed, plain)
        )
        assert {len(refs) for refs in mine} == {micro_batch}
        assert Counter(ref for refs in mine for ref in refs) == Counter(ref for refs in theirs for ref in refs)
        # Sorted by length, micro-batches do not overlap.
        ranges = sorted((min(map(length_of, refs)), max(map(length_of, refs))) for refs in mine)
        assert all(one[1] <= other[0] for one, other in zip(ranges, ranges[1:], strict=False))
    assert [entered.micro_batch_refs(number) for number in numbers] == [
        bucketed.micro_batch_refs(number) for number in numbers
    ]


def padding(order, batches):
    """Padded length over true length."""
    found = [[length_of(ref) for ref in order.micro_batch_refs(number)] for number in range(batches)]
    return sum(max(each) * len(each) for each in found) / sum(map(sum, found))


def test_padding_shrinks_and_a_step_still_sees_all_lengths():
    plain, bucketed = orders([[500] * 8], micro_batch=16, chunk=32, window=32)
    assert (bucketed.span, padding(plain, 128) > 2) == (64, True)
    assert padding(bucketed, 128) < 1.1
    means = [np.mean([length_of(ref) for ref in bucketed.micro_batch_refs(number)]) for number in range(128)]
    # Micro-batches are permuted: lengths of successive ones have nothing to do with each other (deviation 0.09).
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.35
    steps = np.mean(np.reshape(means, (16, 8)), axis=1)
    assert steps.std() < np.std(means) / 2


def test_bucketing_and_its_seed_are_part_of_the_fingerprint():
    plain, bucketed = orders([[40, 40]])
    other, edited = orders([[40, 40]], seed=1)[1], orders([[40, 40]], version="2")[1]
    assert len({order.fingerprint() for order in (plain, bucketed, other, edited)}) == 4
    assert bucketed.fingerprint() == orders([[40, 40]])[1].fingerprint()
    assert [ref for n in range(8) for ref in other.micro_batch_refs(n)] != [
        ref for n in range(8) for ref in bucketed.micro_batch_refs(n)
    ]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    captions = [b"x" * (1 + (7 * n) % 23) for n in range(24)]
    tars = [
        tar([file for n in range(s, s + 8) for file in sample(f"k{n:02d}", caption=captions[n])]) for s in (0, 8, 16)
    ]
    return index(tmp_path_factory.mktemp("bucket"), tars)


def test_lengths_are_those_of_the_captions(manifest):
    rows = SourceRows.from_manifest("src", manifest)
    order = SampleOrder([rows], weights=[1], seed=0, micro_batch=24)
    refs = order.micro_batch_refs(0)
    expected = [1 + (7 * (8 * ref.shard + ref.row)) % 23 for ref in refs]
    assert CaptionLengths([manifest])(refs).tolist() == expected
