"""Micro-batches as a Ray Data stream, in an order that no timing can change. Nothing else in the library knows Ray.

One micro-batch is one row of the dataset, and one row is one block: every column holds a whole [B, …] array per row,
and the target block size is set so small (1 byte) that Ray closes a block after each row. So a micro-batch is never
split or merged, and `streaming_split(W, equal=True)` with `preserve_order`, which gives the next block to the rank
with the fewest rows, hands micro-batch i to rank i mod W exactly. tests/data/test_stream.py guards this:
repeat it at every Ray upgrade.

Micro-batches are made by a pool of actors, each of which builds its function once (order, indexes, tokenizer).
Processor time of the whole path per micro-batch of 8 images of 64x64, on two (busy) cores: tasks 55 ms, actors 37 to
43 ms, actors that make four in a call 33 ms; eight in a call gain nothing more. Most of it is Ray's own scheduling.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from ray.data import (
    ActorPoolStrategy,
    DataContext,
    DataIterator,
    Dataset,
    Datasource,
    ExecutionOptions,
    ReadTask,
    read_datasource,
)
from ray.data.block import BlockMetadata
from ray.train import DataConfig

from blip3o.errors import ConfigError

Arrays = dict[str, np.ndarray]
MicroBatchFn = Callable[[int], Arrays]
EncodeFn = Callable[[Arrays], Arrays]

# Micro-batches made by one actor call: spreads the cost of a call, and holds back no more than this from the order.
PER_CALL = 4
# Calls that an actor is given beyond those that its threads work on: they wait there, so that no thread is idle.
CALLS_WAITING = 1
# Finished micro-batches may pile up before the trainers to this many times what these hold; then the actors pause.
# Beyond it, Ray Data pauses them at half of the object store. Both are Ray 2.60's own values, said here since a Ray
# upgrade has changed them before (10 until 2.57).
BACKPRESSURE_RATIO = 2.0
NUMBER = "micro_batch"


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """Actors that finish micro-batches with a model: `make` is called once in each of `count`, what it returns maps the
    arrays of a micro-batch to those that the trainers get, and is called by `threads` threads at once. Each reserves
    `num_cpus` and `num_gpus` on a node that has the `labels`, if there are any; those of the actors that decode are not
    asked of it.
    """

    make: Callable[[], EncodeFn]
    count: int
    num_cpus: float
    num_gpus: float
    threads: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)


def build_stream(
    *,
    num_micro_batches: int,
    first: int,
    make_micro_batch_fn: Callable[[], MicroBatchFn],
    concurrency: int = 1,
    threads: int = 1,
    num_cpus: float = 1,
    labels: Mapping[str, str] | None = None,
    encoders: Encoders | None = None,
) -> Dataset:
    """The micro-batches `first … num_micro_batches − 1`, in order, as a lazy dataset; give the workers `data_config()`.

    `make_micro_batch_fn` is pickled once and called once in each of `concurrency` actors; what it returns maps a
    number to numeric arrays, all with the same leading dimension, and is called by `threads` threads at once;
    `encoders` then work on these arrays. Each actor reserves `num_cpus` for as long as the stream lives: a cluster
    needs that much beyond what its trainers take, or nothing runs. The number of micro-batches must be a multiple of
    the number of workers, else the rest is not delivered. These actors run on nodes that have the `labels`, if there
    are any: give `data_config` the same labels and encoders.
    Raises `ConfigError` if `first` lies beyond the end; at the end, the stream is empty.
    """
    if not 0 <= first <= num_micro_batches:
        raise ConfigError(
            f"the stream begins at micro-batch {first} and ends at {num_micro_batches}: the run was longer"
        )
    numbers = read_datasource(_Numbers(first, num_micro_batches), override_num_blocks=1, num_cpus=0)
    context = numbers.context
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.execution_options = _execution(labels, encoders)
    context.downstream_capacity_backpressure_ratio = BACKPRESSURE_RATIO
    context.print_on_execution_start = False
    # A pause of the trainer (saving, evaluating) is no failure of the stream.
    context.execution_no_progress_timeout_s = -1
    made = numbers.map_batches(
        _Maker,
        batch_size=1,
        fn_constructor_args=(make_micro_batch_fn,),
        compute=_actors(concurrency, threads),
        num_cpus=num_cpus,
        label_selector=dict(labels) if labels else None,
    )
    if encoders is None:
        return made
    return made.map_batches(
        _Encoder,
        batch_size=1,
        fn_constructor_args=(encoders.make,),
        compute=_actors(encoders.count, encoders.threads),
        num_cpus=encoders.num_cpus,
        num_gpus=encoders.num_gpus,
        label_selector=dict(encoders.labels) or None,
    )


def _actors(count: int, threads: int) -> ActorPoolStrategy:
    return ActorPoolStrategy(
        size=count,
        max_tasks_in_flight_per_actor=threads + CALLS_WAITING,
        max_concurrent_calls_per_actor=threads,
        enable_true_multi_threading=threads > 1,
    )


def data_config(labels: Mapping[str, str] | None = None, encoders: Encoders | None = None) -> DataConfig:
    """How Ray Train must split the stream, whose labels are said again: Train replaces a dataset's own execution
    options by these.
    """
    return DataConfig(execution_options=_execution(labels, encoders), enable_shard_locality=False)


def _execution(labels: Mapping[str, str] | None, encoders: Encoders | None) -> ExecutionOptions:
    """Asks every actor of the stream for the labels that all of them want: an actor can add to these, but not drop
    one.
    """
    asked = labels or {}
    common = {key: asked[key] for key in asked if encoders is None or encoders.labels.get(key) == asked[key]}
    return ExecutionOptions(preserve_order=True, label_selector=common or None)


def iterate_micro_batches(shard: DataIterator, *, prefetch: int = 2) -> Iterator[Arrays]:
    """This worker's micro-batches in order: arrays [B, …], read-only views of shared memory.

    Column `micro_batch` int64 [B] repeats the global number; `prefetch` micro-batches are fetched ahead.
    """
    for batch in shard.iter_batches(batch_size=1, prefetch_batches=prefetch, batch_format="numpy"):
        yield {name: column[0] for name, column in batch.items()}


class _Numbers(Datasource):
    """Rows (first, last + 1) of runs of `PER_CALL` micro-batch numbers; one read task makes them as they are asked
    for.
    """

    def __init__(self, first: int, end: int) -> None:
        super().__init__()
        self._first, self._end = first, end

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown on purpose: an estimate would make Ray split the one read task."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task, whatever is asked."""
        first, end = self._first, self._end

        def read() -> Iterator[pa.Table]:
            for begin in range(first, end, PER_CALL):
                yield pa.table({"begin": [begin], "end": [min(begin + PER_CALL, end)]})

        rows = -(-(end - first) // PER_CALL)
        return [ReadTask(read, BlockMetadata(num_rows=rows, size_bytes=16 * rows, input_files=None, exec_stats=None))]


class _Maker:
    """What runs in an actor: makes the micro-batches of one row of numbers, one after the other."""

    def __init__(self, make: Callable[[], MicroBatchFn]) -> None:
        self._fn = make()

    def __call__(self, numbers: Arrays) -> Iterator[Arrays]:
        for number in range(int(numbers["begin"][0]), int(numbers["end"][0])):
            arrays = self._fn(number)
            rows = len(next(iter(arrays.values())))
            arrays[NUMBER] = np.full(rows, number, np.int64)
            yield _row(arrays)


class _Encoder:
    """What runs in an encoding actor: one micro-batch in, the same with other columns out."""

    def __init__(self, make: Callable[[], EncodeFn]) -> None:
        self._fn = make()

    def __call__(self, row: Arrays) -> Arrays:
        return _row(self._fn({name: column[0] for name, column in row.items()}))


def _row(arrays: Arrays) -> Arrays:
    """A micro-batch as one row. Raises `TypeError` if a column is not of numbers, or has another leading dimension."""
    number, rows = int(arrays[NUMBER][0]), len(arrays[NUMBER])
    for name, array in arrays.items():
        if len(array) != rows or array.dtype.kind not in "biuf":
            raise TypeError(
                f"column '{name}' of micro-batch {number} is {array.dtype} {array.shape}, "
                f"expected numbers with leading dimension {rows}"
            )
    return {name: array[None] for name, array in arrays.items()}
