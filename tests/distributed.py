"""A function run by several processes of one gloo group on this machine, each with its rank; results come back."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from blip3o import settings


def run_ranks(function: Callable[..., Any], folder: Path, *args: Any, world: int = 2) -> list[Any]:
    """What `function(*args)` returns on each rank of a group of `world` processes. It must be importable."""
    mp.spawn(_enter, (world, _free_port(), str(folder), function, args), nprocs=world)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(world)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def join_group(rank: int, world: int, port: int) -> None:
    """Makes this process a rank of a gloo group, as Ray Train's workers are: DeepSpeed reads the environment too."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    settings.override({name: str(value) for name, value in names.items()})
    dist.init_process_group("gloo", rank=rank, world_size=world)


def _enter(rank: int, world: int, port: int, folder: str, function: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    join_group(rank, world, port)
    result = function(*args)
    torch.save(result, Path(folder) / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
