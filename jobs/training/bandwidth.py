"""The preflight check of the network: how fast an all-reduce over workers is, by torch.distributed on Ray actors.

Gradients are all-reduced in each step, so this bounds a step from below. It needs no data and no weights: the first
thing to run on a new cluster.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import ray
import torch
import torch.distributed as dist
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.training import ParallelConfig
from blip3o.device import DeviceKind, collective_backend, gpus_per_worker, select
from blip3o.errors import ConfigError
from blip3o.train.preflight.checks import Check, verdict
from jobs.common import join_ray, on_a_cluster

# What is reduced: on a GPU as much as DeepSpeed's buckets have, on the CPU what a test can wait for.
BYTES: dict[DeviceKind, int] = {"cpu": 2**24, "gpu": 2**28}
WARM_UP, ROUNDS = 3, 10
NODES_SECONDS = 900.0  # a cluster may start nodes for the check
JOIN_SECONDS = 120.0  # for workers to find each other, and for one reduction


def all_reduce_check(pipeline: TrainingPipeline, ranks: int) -> Check:
    """Measures an all-reduce over `ranks` workers with the device, CPUs and labels of the pipeline's trainers.

    A check that is wrong says that the sum was. Raises `ConfigError` if Ray does not have the workers' resources.
    """
    join_ray()
    parallel = pipeline.stages[0].parallel
    with _reserved(parallel, ranks) as group:
        workers = [_start(parallel, group, index) for index in range(ranks)]
        host, port = ray.get(workers[0].serve.remote(ranks))
        found = ray.get([worker.run.remote(host, port, rank, ranks) for rank, worker in enumerate(workers)])
    seconds = max(seconds for seconds, _ in found)  # the slowest worker's: the others' next step waits for it
    size = BYTES[parallel.device]
    return verdict(
        "all-reduce",
        good=all(right for _, right in found),
        detail=f"{size} bytes over {ranks} workers by {collective_backend(parallel.device)} in {1e3 * seconds:.2f} ms: "
        f"{size / seconds / 1e9:.2f} GB/s, {2 * (ranks - 1) / ranks * size / seconds / 1e9:.2f} GB/s on each link",
        fix="the sum is wrong: look for faulty memory or network hardware",
    )


@contextmanager
def _reserved(parallel: ParallelConfig, ranks: int) -> Iterator[PlacementGroup]:
    """Bundles for the workers, released at the end. Raises `ConfigError` if they cannot be had."""
    bundle = {"CPU": parallel.cpus_per_worker, "GPU": gpus_per_worker(parallel.device)}
    bundle = {name: amount for name, amount in bundle.items() if amount}
    offered = ray.cluster_resources()
    short = {name for name, amount in bundle.items() if ranks * amount > offered.get(name, 0)}
    asked = " and ".join(
        f"{ranks * amount:g} {name}s, Ray has {offered.get(name, 0):g}" for name, amount in bundle.items()
    )
    if short and not on_a_cluster():
        raise ConfigError(f"{ranks} workers need {asked}: ask for fewer, or submit to a cluster")
    labels = [dict(parallel.worker_labels)] * ranks if parallel.worker_labels else None
    group = placement_group([bundle] * ranks, strategy="PACK", bundle_label_selector=labels)
    try:
        if not group.wait(NODES_SECONDS):
            raise ConfigError(f"{ranks} workers need {asked}, also after {NODES_SECONDS:g} s: see `ray status`")
        yield group
    finally:
        remove_placement_group(group)  # ends its actors


def _start(parallel: ParallelConfig, group: PlacementGroup, index: int) -> "ray.actor.ActorHandle[_Rank]":
    place = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=index)
    options = {"num_cpus": parallel.cpus_per_worker, "num_gpus": gpus_per_worker(parallel.device)}
    return ray.remote(_Rank).options(scheduling_strategy=place, **options).remote(parallel.device)


class _Rank:
    """What runs in each worker."""

    def __init__(self, kind: DeviceKind) -> None:
        self._kind: DeviceKind = kind
        self._device = select(kind)  # Ray shows an actor only its own GPUs
        self._store: dist.TCPStore | None = None

    def serve(self, ranks: int) -> tuple[str, int]:
        """Opens the store in which the workers find each other, on a free port of this node."""
        host = ray.util.get_node_ip_address()
        self._store = dist.TCPStore(host, 0, ranks, is_master=True, wait_for_workers=False)
        return host, self._store.port

    def run(self, host: str, port: int, rank: int, ranks: int) -> tuple[float, bool]:
        """The median of the rounds' seconds, and whether every sum was right."""
        patience = timedelta(seconds=JOIN_SECONDS)
        store = self._store or dist.TCPStore(host, port, ranks, is_master=False, timeout=patience)
        backend = collective_backend(self._kind)
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=patience)
        data = torch.empty(BYTES[self._kind] // 4, device=self._device)
        rounds = [_reduce(data, ranks) for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
        dist.destroy_process_group()
        return statistics.median(seconds for seconds, _ in rounds), all(right for _, right in rounds)


def _reduce(data: torch.Tensor, ranks: int) -> tuple[float, bool]:
    """Seconds of one all-reduce of ones, and whether its sums are `ranks`."""
    data.fill_(1)
    dist.barrier()
    data[0].item()  # waits for the device
    began = time.perf_counter()
    dist.all_reduce(data)
    data[0].item()
    return time.perf_counter() - began, bool((data == ranks).all())
