"""Threads make micro-batches in any order; the reader hands them out in theirs, and holds no more than it says."""

import threading

import numpy as np
import pytest

from blip3o.data.local_reader import WAITING, read_micro_batches
from blip3o.errors import DataError


def micro_batch(number: int) -> dict[str, np.ndarray]:
    return {"ids": np.arange(number, number + 3)}


@pytest.mark.parametrize("threads", [1, 3])
def test_micro_batches_come_in_order_whichever_is_made_first(threads):
    later = {number: threading.Event() for number in range(3, 30, 2)}

    def make(number):
        if number % 4 == 3 and threads > 1:  # waits for the next of the list, which another thread makes
            assert later[number + 2].wait(60)
        later[number].set()
        return micro_batch(number)

    found = list(read_micro_batches(range(3, 30, 2), make, threads=threads))
    assert [batch["ids"][0] for batch in found] == list(range(3, 30, 2))
    assert all((batch["micro_batch"] == batch["ids"][0]).all() and len(batch["micro_batch"]) == 3 for batch in found)


def test_reading_starts_at_once_and_stays_a_few_micro_batches_ahead():
    asked, ready = [], threading.Semaphore(0)

    def make(number):
        asked.append(number)
        ready.release()
        return micro_batch(number)

    def await_made(count):
        for _ in range(count):
            assert ready.acquire(timeout=60)

    reader = read_micro_batches(range(1000), make, threads=2)
    ahead = 2 + WAITING
    await_made(ahead)
    assert sorted(asked) == list(range(ahead))
    for taken in range(1, 6):
        next(reader)
        await_made(1)
        assert sorted(asked) == list(range(ahead + taken))
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("data-reader")]
    assert sorted(asked) == list(range(ahead + 5))


def test_an_error_comes_where_its_micro_batch_would_be():
    def make(number):
        if number == 2:
            raise DataError("source 'scenes' has no good samples left")
        return micro_batch(number)

    reader = read_micro_batches(range(5), make, threads=3)
    assert [int(next(reader)["micro_batch"][0]) for _ in range(2)] == [0, 1]
    with pytest.raises(DataError, match="no good samples"):
        next(reader)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("data-reader")]


def test_nothing_is_read_of_an_empty_range():
    assert list(read_micro_batches(range(8, 8), micro_batch)) == []
