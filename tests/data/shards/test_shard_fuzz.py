"""No bytes given as a shard end in anything but samples, a ledger, and an account that adds up."""

import random
from collections import Counter

import pytest

from tests.data.shard_fuzz import check_shard, fuzz_shards, parquet_bytes, tar_bytes


@pytest.mark.timeout(60)
@pytest.mark.parametrize("first", range(0, 60, 20))
def test_no_bytes_are_a_traceback(tmp_path, first):
    for seed in range(first, first + 20):
        fuzz_shards(seed, tmp_path)


@pytest.mark.parametrize("make", [tar_bytes, parquet_bytes])
def test_the_fuzz_reaches_good_samples_and_many_kinds_of_damage(tmp_path, make):
    kinds: Counter[str] = Counter()
    good = 0
    for seed in range(50):
        scan = check_shard(tmp_path, "a.shard", make(random.Random(seed)))
        good += len(scan.samples) - len(scan.bad_rows)
        kinds.update(entry.reason.split(":")[0] for entry in scan.damage)
    assert good > 20
    assert len(kinds) >= 5, kinds
