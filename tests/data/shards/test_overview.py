"""Look-alikes are those that comparing all pairs finds; histograms count every value once."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3o.data.shards.overview import ALIKE_BITS, good_samples, histogram, look_alikes
from blip3o.errors import DataError
from tests.data.shard_files import UNHURRIED, index, sample, samples, tar

HASH = st.integers(-(2**63), 2**63 - 1)


def linked(hashes: list[int]) -> list[list[int]]:
    """By comparing all pairs, again and again, until no group grows."""
    groups = [{number} for number in range(len(hashes))]
    for a, b in itertools.combinations(range(len(hashes)), 2):
        if ((hashes[a] ^ hashes[b]) & (2**64 - 1)).bit_count() <= ALIKE_BITS:
            one, other = (next(group for group in groups if number in group) for number in (a, b))
            if one is not other:
                groups.remove(other)
                one |= other
    return sorted((sorted(g) for g in groups if len(g) > 1), key=lambda g: (-len(g), g[0]))


@given(st.lists(st.tuples(HASH, st.lists(st.integers(0, 63), max_size=6)), max_size=8))
@UNHURRIED
def test_look_alikes_are_those_of_all_pairs(seeds):
    hashes = []
    for base, flips in seeds:
        near = base & (2**64 - 1)
        for bit in flips:
            hashes.append(near)
            near ^= 1 << bit
        hashes.append(near)
    signed = [value - 2**64 if value >= 2**63 else value for value in hashes]
    assert look_alikes(np.array(signed, np.int64)) == linked(signed)


def test_a_histogram_counts_every_value_once():
    found = histogram(np.array([0, 9.5, 10, 10, 99, 1000]), (0, 10, 100))
    assert [(part.label, part.count) for part in found] == [("0 to 10", 2), ("10 to 100", 3), ("100 or more", 1)]


def test_good_samples_leave_out_bad_rows(tmp_path):
    manifest = index(tmp_path, [tar(samples(2) + sample("bad", caption=b"")), tar(samples(1, "t"))])
    found = good_samples(manifest)
    assert list(zip(found.shard.tolist(), found.row.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0)]
    assert (found.width.tolist(), found.height.tolist()) == ([12] * 3, [9] * 3)
    with pytest.raises(DataError, match="has no good sample: see its ledger"):
        good_samples(index(tmp_path / "none", [tar(sample("bad", caption=b""))]))
