"""Micro-batches as a Ray Data stream, in an order that no timing can change. Nothing else in the library knows Ray.

A row of the dataset is a packet: one or more micro-batches of one rank (`blip3o.data.packets`). One row is one block:
the target block size is set so small (1 byte) that Ray closes a block after each row. So a packet is never split or
merged, and `streaming_split(W, equal=True)` with `preserve_order`, which gives the next block to the rank with the
fewest rows, hands packet j to rank j mod W exactly. Packets are made such that micro-batch i reaches rank i mod W.
tests/data/test_stream.py guards this: repeat it at every Ray upgrade.

Micro-batches are made by a pool of actors, each of which builds its function once (order, indexes, tokenizer). What Ray
costs, it costs per call and per block, whatever their size: hence several micro-batches in each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

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

from blip3o.data.packets import NUMBER, Arrays, numbered, pack, unpack
from blip3o.errors import ConfigError

MicroBatchFn = Callable[[int], Arrays]
EncodeFn = Callable[[Arrays], Arrays]

# The least micro-batches made by one actor call. An actor holds back no more than a call's from the order.
PER_CALL = 4
# Calls that an actor is given beyond those that its threads work on: they wait there, so that no thread is idle.
CALLS_WAITING = 1
# Finished micro-batches may pile up before the trainers to this many times what these hold; then the actors pause.
# Beyond it, Ray Data pauses them at half of the object store. Both are Ray 2.60's own values, said here since a Ray
# upgrade has changed them before (10 until 2.57).
BACKPRESSURE_RATIO = 2.0
_PACKET = "packet"


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


@dataclass(frozen=True, kw_only=True)
class Packets:
    """How micro-batches travel: `size` of one of `ranks` workers in each packet.

    At size 1 they go round any number of workers, otherwise round `ranks`.
    """

    ranks: int
    size: int

    @property
    def per_call(self) -> int:
        """Micro-batches that an actor makes in one call: at least `PER_CALL`, and whole rounds of all ranks."""
        return -(-PER_CALL // self._round) * self._round

    def of(self, numbers: range) -> Iterator[range]:
        """The numbers of each packet; `numbers` begins with the first rank's."""
        for begin in numbers[:: self._round]:
            turn = numbers[begin - numbers.start :][: self._round]
            yield from (turn[rank :: self._stride] for rank in range(min(self._stride, len(turn))))

    @property
    def _stride(self) -> int:
        return self.ranks if self.size > 1 else 1

    @property
    def _round(self) -> int:
        return self._stride * self.size


def build_stream(
    *,
    numbers: range,
    make_micro_batch_fn: Callable[[], MicroBatchFn],
    packets: Packets | None = None,
    concurrency: int = 1,
    threads: int = 1,
    num_cpus: float = 1,
    labels: Mapping[str, str] | None = None,
    encoders: Encoders | None = None,
) -> Dataset:
    """The micro-batches of these numbers, in order, as a lazy dataset; give the workers `data_config()`.

    `make_micro_batch_fn` is pickled once and called once in each of `concurrency` actors; what it returns maps a
    number to numeric arrays, all with the same leading dimension, and is called by `threads` threads at once;
    `encoders` then work on these arrays. They travel one by one if no `packets` are given. Each actor reserves
    `num_cpus` for as long as the stream lives: a cluster needs that much beyond what its trainers take, or nothing
    runs. The number of micro-batches must be a multiple of the number of workers, else the rest is not delivered. These
    actors run on nodes that have the `labels`, if there are any: give `data_config` the same labels and encoders.
    Raises `ConfigError` if the numbers begin beyond their end; at the end, the stream is empty.
    """
    if not 0 <= numbers.start <= numbers.stop:
        raise ConfigError(
            f"the stream begins at micro-batch {numbers.start} and ends at {numbers.stop}: the run was longer"
        )
    packets = packets or Packets(ranks=1, size=1)
    calls = read_datasource(_Calls(numbers, packets.per_call), override_num_blocks=1, num_cpus=0)
    context = calls.context
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.execution_options = _execution(labels, encoders)
    context.downstream_capacity_backpressure_ratio = BACKPRESSURE_RATIO
    context.print_on_execution_start = False
    # Ray would read the memory map of an actor's process at every call, which costs as much as making a small batch.
    context.memory_usage_poll_interval_s = None
    # A pause of the trainer (saving, evaluating) is no failure of the stream.
    context.execution_no_progress_timeout_s = -1
    made = calls.map_batches(
        _Maker,
        batch_size=1,
        fn_constructor_args=(make_micro_batch_fn, packets),
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

    Column `micro_batch` int64 [B] repeats the global number; `prefetch` packets are fetched ahead.
    """
    for batch in shard.iter_batches(batch_size=1, prefetch_batches=prefetch, batch_format="numpy"):
        yield from unpack(batch[_PACKET][0])


class _Calls(Datasource):
    """Rows (first, last + 1) of runs of micro-batch numbers, one a call; one read task makes them as they are asked
    for.
    """

    def __init__(self, numbers: range, per_call: int) -> None:
        super().__init__()
        self._numbers, self._per_call = numbers, per_call

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown on purpose: an estimate would make Ray split the one read task."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task, whatever is asked."""
        numbers, per_call = self._numbers, self._per_call

        def read() -> Iterator[pa.Table]:
            for begin in numbers[::per_call]:
                yield pa.table({"begin": [begin], "end": [min(begin + per_call, numbers.stop)]})

        rows = len(numbers[::per_call])
        return [ReadTask(read, BlockMetadata(num_rows=rows, size_bytes=16 * rows, input_files=None, exec_stats=None))]


class _Maker:
    """What runs in an actor: makes the micro-batches of one row of numbers, and packs them for the ranks in turn."""

    def __init__(self, make: Callable[[], MicroBatchFn], packets: Packets) -> None:
        self._fn = make()
        self._packets = packets

    def __call__(self, call: Arrays) -> Iterator[Arrays]:
        for own in self._packets.of(range(int(call["begin"][0]), int(call["end"][0]))):
            yield _row([numbered(self._fn(number), number) for number in own])


class _Encoder:
    """What runs in an encoding actor: one packet in, the same with other columns out."""

    def __init__(self, make: Callable[[], EncodeFn]) -> None:
        self._fn = make()

    def __call__(self, row: Arrays) -> Arrays:
        return _row([self._fn(arrays) for arrays in unpack(row[_PACKET][0])])


def _row(micro_batches: Sequence[Arrays]) -> Arrays:
    """A packet as one row. Raises `TypeError` if a column is not of numbers, or has another leading dimension."""
    for arrays in micro_batches:
        number, rows = int(arrays[NUMBER][0]), len(arrays[NUMBER])
        for name, array in arrays.items():
            if len(array) != rows or array.dtype.kind not in "biuf":
                raise TypeError(
                    f"column '{name}' of micro-batch {number} is {array.dtype} {array.shape}, "
                    f"expected numbers with leading dimension {rows}"
                )
    return {_PACKET: pack(micro_batches)[None]}
