"""Micro-batches made by threads of the process that trains on them: the recipe's `data.reader: local`.

The function that makes a micro-batch is pure, so this reader and Ray Data's stream (`blip3o.data.stream`) give the same
arrays in the same order, and a run may change from one to the other between two submissions. Nothing is started and
nothing is copied; in return it cannot use the processors of other nodes, and shares the interpreter's lock with the
trainer. Decoding happens outside that lock.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from blip3o.data.packets import Arrays, numbered

# Finished micro-batches that wait for the trainer while every thread makes another one.
WAITING = 2


def read_micro_batches(numbers: Iterable[int], make: Callable[[int], Arrays], *, threads: int = 1) -> Iterator[Arrays]:
    """The micro-batches of these numbers in order: arrays [B, …] as `make` gives them, and column `micro_batch`.

    `make` is called by `threads` threads at once, from now on, at most `threads` + `WAITING` micro-batches ahead of the
    caller. What it raises is raised where its micro-batch would be. Closing the iterator waits for the threads.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="data-reader")

    def made(number: int) -> Arrays:
        return numbered(make(number), number)

    started = (pool.submit(made, number) for number in numbers)
    return _in_order(pool, deque(islice(started, threads + WAITING)), started)


def _in_order(
    pool: ThreadPoolExecutor, window: "deque[Future[Arrays]]", more: Iterator["Future[Arrays]"]
) -> Iterator[Arrays]:
    """The results of a window of futures, which `more` keeps full; then the pool's end."""
    try:
        while window:
            arrays = window.popleft().result()
            window.extend(islice(more, 1))
            yield arrays
    finally:
        pool.shutdown(cancel_futures=True)
