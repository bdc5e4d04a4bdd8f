"""The batches of a run, byte for byte, are those of a function called in one process: on real Ray and a real store.

Whatever the number of workers, the delays, the faults of the network, a worker's SIGKILL or a store that is killed and
comes back. What cannot be got is an error, never a shorter run.
"""

import hashlib
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import psutil
import pytest

from blip3o import storage
from blip3o.config.objectives import Task
from blip3o.data.batches import build_micro_batches
from blip3o.data.inputs import StageInputs
from blip3o.data.shards.manifest import write_manifest, write_shard_index
from blip3o.data.shards.scan import scan_shard
from blip3o.data.stream import build_stream, data_config
from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.train.checkpoint.store import committed_step
from cluster.local_s3 import LocalS3
from tests import recipes
from tests.data.shard_files import put, samples, tar
from tests.data.test_stream import consume
from tests.faults import FaultProxy, Plan

SHARDS, PER_SHARD, BATCH = 24, 5, 4
BATCHES = 32  # of 30 in a pass: the run ends in the second
FAULTS = Plan(seed=1, share=0.5, repeats=2, kinds=("500", "503", "reset", "cut", "short", "delay"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of this module's own, which may be killed."""
    with LocalS3(data_dir=tmp_path_factory.mktemp("own-s3")) as made:
        yield made


@pytest.fixture(scope="module")
def network(store):
    """The way to it, and the environment of who takes that way."""
    store.create_bucket("exact")
    with FaultProxy(store.endpoint) as proxy:
        # Of a busy machine, too: what is tested is what comes back, not how soon.
        patience = {"BLIP3O_STORE_PATIENCE_S": "240", "BLIP3O_STORE_TIMEOUT_S": "60"}
        yield proxy, store.environment | proxy.environment | patience


@pytest.fixture
def proxy(network):
    made, _ = network
    made.follow(Plan(share=0))
    return made


@pytest.fixture(scope="module")
def recipe(network, tmp_path_factory):
    """A recipe over many small shards, so that every few micro-batches ask the store for more."""
    root, name = "s3://exact/data", "scenes"
    made = recipes.recipe(
        run={"name": "exact", "storage": str(tmp_path_factory.mktemp("runs"))},
        data={"root": root, "chunk": 4, "window": 2, "max_length": 160},
        optim={"steps": BATCHES, "micro_batch_size": BATCH, "micro_batches": 4},
        parallel={"workers": 4},
    )
    with environment(network):
        tokenizer = ChatTokenizer.train(["caption of s000 s001"], 300)
        storage.write_bytes(f"{root}/tokenizer.json", tokenizer.to_bytes())
        rows = []
        for shard in range(SHARDS):
            file = put(f"{root}/{name}", f"train-{shard:05d}.tar", tar(samples(PER_SHARD, f"{shard:02d}-")))
            scan = scan_shard(file, source=name, shard=shard)
            rows.append(write_shard_index(f"{root}/manifests/{name}", file, scan).row)
        write_manifest(f"{root}/manifests/{name}", name, rows)
    return made


@contextmanager
def environment(network):
    """This process takes the module's way to the store for a while."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in network[1].items():
            patch.setenv(name, value)
        yield
    storage.forget_clients()


def digest(arrays):
    """sha256 over every column's name, type, shape and bytes; the keys of the draws (sample and pass) with it."""
    columns = {name: array for name, array in arrays.items() if name != "micro_batch"}
    hashed = hashlib.sha256()
    for name, array in sorted(columns.items()):
        hashed.update(f"{name} {array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return [int(key) for key in arrays["draw_key"]], hashed.hexdigest()


@pytest.fixture(scope="module")
def expected(recipe, network):
    """Digests of all micro-batches, made here, one by one, without Ray and without faults."""
    with environment(network):
        build = build_micro_batches(StageInputs(recipe), Task.GENERATE)
        return [digest(build(number)) for number in range(BATCHES)]


def factory(recipe, values):
    """What an actor of the stream calls: it takes the way to the store that `values` say."""

    def make():
        from blip3o import settings
        from blip3o.config.objectives import Task
        from blip3o.data.batches import build_micro_batches
        from blip3o.data.inputs import StageInputs

        settings.override(values)
        return build_micro_batches(StageInputs(recipe), Task.GENERATE)

    return make


def stream(recipe, values, first=0, makers=2, threads=1):
    return build_stream(
        numbers=range(first, BATCHES),
        make_micro_batch_fn=factory(recipe, values),
        concurrency=makers,
        threads=threads,
        num_cpus=0.5,
    )


def by_number(seen):
    """Digest of each micro-batch by the place that its rank and turn say."""
    world = len(seen)
    return {
        turn * world + rank: digest(batch) for rank, batches in enumerate(seen) for turn, batch in enumerate(batches)
    }


def test_the_reference_is_a_whole_run(expected):
    keys = [key for batch, _ in expected for key in batch]
    assert len(set(keys)) == len(keys) == BATCHES * BATCH
    assert len({bytes_of for _, bytes_of in expected}) == BATCHES


@pytest.mark.parametrize(
    ("world", "plan"),
    [(1, Plan(share=0)), (2, Plan(seed=3, share=0.7, kinds=("delay",))), (4, FAULTS)],
    ids=["quiet", "delays", "faults"],
)
def test_batches_are_the_same_for_any_number_of_workers(ray_cluster, recipe, network, proxy, expected, world, plan):
    proxy.follow(plan)
    made = stream(recipe, network[1], makers=1, threads=3) if world == 4 else stream(recipe, network[1])
    assert by_number(consume(made, world)) == dict(enumerate(expected))
    assert bool(proxy.done.faults) == (plan.share > 0)
    if plan is FAULTS:
        assert len(proxy.done.faults) > 3, proxy.done


def test_a_store_that_is_killed_and_comes_back_is_waited_for(ray_cluster, recipe, network, proxy, store, expected):
    reached = threading.Event()
    proxy.follow(lambda request: reached.set() if f"train-{SHARDS // 3:05d}.tar" in request.path else None)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(consume, stream(recipe, network[1]), 2)
        # The server ends with the thread that started it, so this one does.
        assert reached.wait(240)
        psutil.Process(store.pid).kill()
        store.stop()
        before = proxy.done.requests.total()
        store.start(timeout_s=240)
        proxy.upstream = store.endpoint
        seen = run.result()
    assert by_number(seen) == dict(enumerate(expected))
    assert before < proxy.done.requests.total(), "all had been read before the store was killed"


def test_a_fault_that_outlasts_the_patience_ends_the_run_by_name(ray_cluster, recipe, network, proxy):
    gone = "train-00007.tar"
    proxy.follow(lambda request: "503" if gone in request.path else None)
    with pytest.raises(
        Exception, match=rf"StorageError: s3://exact/data/scenes/{gone}: .*\(tried \d+ times in"
    ) as raised:
        list(stream(recipe, network[1] | {"BLIP3O_STORE_PATIENCE_S": "0.5"}).iter_batches(batch_size=1))
    assert "injected" in str(raised.value)


def spans(folder, world, expected):
    """The turns that each process of a rank saw, from the checkpoint on that it began at, by rank; all as expected."""
    seen = {rank: [] for rank in range(world)}
    for file in folder.glob("*.jsonl"):
        rank, begun, _ = map(int, file.stem.split("-"))
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert [turn for turn, *_ in rows] == list(range(begun, begun + len(rows)))
        for turn, keys, hashed in rows:
            assert (keys, hashed) == expected[turn * world + rank], (file.name, turn)
        seen[rank].append((begun, begun + len(rows)))
    return seen


def test_a_run_killed_at_a_random_step_goes_on_with_the_same_batches(
    ray_cluster, recipe, network, proxy, expected, tmp_path
):
    import ray.train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    proxy.follow(FAULTS)
    world, every, values = 2, 2, network[1]
    turns = BATCHES // world
    victim, step = random.randrange(world), random.randrange(every, turns)

    def worker(config):
        import os
        import pathlib
        import signal
        import tempfile

        import ray.train

        from blip3o.data.stream import iterate_micro_batches

        rank = ray.train.get_context().get_world_rank()
        saved = ray.train.get_checkpoint()
        done = int(saved.path.rsplit("-", 1)[1]) if saved else 0
        killed = pathlib.Path(config["out"], "killed")
        with open(f"{config['out']}/{rank}-{done}-{os.getpid()}.jsonl", "w") as out:
            for batch in iterate_micro_batches(ray.train.get_dataset_shard("train")):
                if (rank, done) == config["kill"] and not killed.exists():
                    killed.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                print(json.dumps([done, *digest(batch)]), file=out, flush=True)
                done += 1
                if done % config["every"] == 0:
                    with tempfile.TemporaryDirectory() as folder:
                        checkpoint = ray.train.Checkpoint.from_directory(folder) if rank == 0 else None
                        ray.train.report({}, checkpoint, checkpoint_dir_name=f"{config['run']}-step-{done:08d}")

    DataParallelTrainer(
        worker,
        train_loop_config={"out": str(tmp_path), "kill": (victim, step), "every": every, "run": recipe.run.name},
        scaling_config=ray.train.ScalingConfig(num_workers=world, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(
            name=recipe.run.name,
            storage_path=recipe.run.storage,
            failure_config=ray.train.FailureConfig(max_failures=1),
        ),
        datasets={"train": lambda: stream(recipe, values, committed_step(recipe) * world, makers=1)},
        dataset_config=data_config(),
    ).fit()
    seen = spans(tmp_path, world, expected)
    for rank, parts in seen.items():
        (first, broken), (again, end) = sorted(parts)
        assert (first, end) == (0, turns) and 0 < again <= broken and again % every == 0, (rank, parts, victim, step)
        assert rank != victim or broken == step, (parts, victim, step)
