"""On real Ray: micro-batch i goes to rank i mod W whole and in order, whatever the timing and wherever it starts."""

import threading

import numpy as np
import pytest

from blip3o.data.stream import Encoders, Packets, build_stream, data_config, iterate_micro_batches
from blip3o.errors import ConfigError

B = 3


def maker(delay: float = 0.05):
    """A factory of micro-batches whose making takes a time that has nothing to do with their order."""

    def make():
        import time
        import zlib

        built = time.time_ns()

        def micro_batch(number: int) -> dict[str, np.ndarray]:
            time.sleep(delay * (zlib.crc32(str(number).encode()) % 100) / 100)
            rows = number * B + np.arange(B)
            return {
                "ids": rows.astype(np.int32).reshape(B, 1),
                "pixels": np.full((B, 8, 8, 3), number % 256, np.uint8),
                "built": np.full(B, built, np.int64),
            }

        return micro_batch

    return make


def stream(first: int, end: int, **options):
    return build_stream(**{"numbers": range(first, end), "make_micro_batch_fn": maker(), "num_cpus": 0.5} | options)


def consume(dataset, world: int) -> list[list[dict[str, np.ndarray]]]:
    """What each rank sees, split as Ray Train splits; later ranks start and continue later."""
    shards = data_config().configure({"train": dataset}, world, None, None)
    seen: list[list[dict[str, np.ndarray]]] = [[] for _ in range(world)]

    def read(rank: int) -> None:
        pause = threading.Event()
        for batch in iterate_micro_batches(shards[rank]["train"]):
            pause.wait(0.02 * rank)
            seen[rank].append({name: array.copy() for name, array in batch.items()})

    threads = [threading.Thread(target=read, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def numbers(seen: list[list[dict[str, np.ndarray]]]) -> list[list[int]]:
    return [[int(batch["micro_batch"][0]) for batch in batches] for batches in seen]


def negated():
    """What an encoding actor makes."""
    return lambda arrays: {**arrays, "negated": -arrays["ids"]}


@pytest.mark.parametrize(
    ("world", "first", "end", "threads", "size"),
    [(2, 0, 24, 3, 1), (3, 6, 24, 1, 1), (2, 2, 30, 2, 4), (3, 6, 27, 1, 2)],
)
def test_micro_batches_go_round_the_ranks_whole(ray_cluster, world, first, end, threads, size):
    """Alone or in packets, of which the last of each rank may hold fewer; also where actors encode them."""
    encoders = Encoders(make=negated, count=2, num_cpus=0.1, num_gpus=0) if size == 4 else None
    packets = Packets(ranks=world, size=size)
    seen = consume(stream(first, end, concurrency=2, threads=threads, packets=packets, encoders=encoders), world)
    assert numbers(seen) == [list(range(first + rank, end, world)) for rank in range(world)]
    for number, batch in ((int(batch["micro_batch"][0]), batch) for batches in seen for batch in batches):
        assert batch["ids"].dtype == np.int32
        assert batch["ids"].tolist() == [[number * B + row] for row in range(B)]
        assert batch["pixels"].shape == (B, 8, 8, 3)
        assert (batch["pixels"] == number).all()
        assert batch["micro_batch"].tolist() == [number] * B
        assert encoders is None or (batch["negated"] == -batch["ids"]).all()
    assert len({int(batch["built"][0]) for batches in seen for batch in batches}) <= 2  # once in each actor


def test_a_stream_runs_where_its_labels_are_also_when_train_has_split_it(ray_cluster):
    """Train replaces a dataset's options, so they are said twice; every node has its own id as a label."""
    here = {"ray.io/node-id": ray_cluster.get_runtime_context().get_node_id()}
    dataset = stream(0, 4, labels=here)
    context = dataset.context
    assert (context.execution_options.label_selector, context.execution_options.preserve_order) == (here, True)
    assert context.downstream_capacity_backpressure_ratio == 2.0
    for labels, expected in ((None, None), (here, here)):
        [shard] = data_config(labels).configure({"train": dataset}, 1, None, None)
        options = dataset.context.execution_options
        assert (options.label_selector, options.preserve_order) == (expected, True)
    assert numbers([list(iterate_micro_batches(shard["train"]))]) == [[0, 1, 2, 3]]


def test_actors_that_decode_and_that_encode_are_placed_apart(ray_cluster):
    decode, encode = {"kind": "decode"}, {"kind": "encode"}
    for asked, expected in ((encode, encode), ({}, None)):
        encoders = Encoders(make=maker(), count=1, num_cpus=1, num_gpus=0, labels=asked)
        dataset = stream(0, 4, labels=decode, encoders=encoders)
        assert dataset.context.execution_options.label_selector is None
        last = dataset._logical_plan.dag
        [before] = last.input_dependencies
        found = [operator.ray_remote_args.get("label_selector") for operator in (before, last)]
        assert found == [decode, expected]


def test_an_empty_stream_ends_at_once(ray_cluster):
    assert consume(stream(8, 8), 1) == [[]]


def test_a_start_beyond_the_end_is_named():
    with pytest.raises(ConfigError, match="begins at micro-batch 9 and ends at 8"):
        stream(9, 8)


def test_columns_of_another_shape_stop_the_stream(ray_cluster):
    def make():
        return lambda number: {"pixels": np.zeros(B), "ids": np.zeros(B + 1)}

    with pytest.raises(Exception, match=r"column 'ids' of micro-batch 0 is float64 \(4,\), expected numbers with"):
        next(iterate_micro_batches(stream(0, 2, make_micro_batch_fn=make).iterator()))
