"""Ranks that start with different weights are stopped, and the parameter is named: two processes of one gloo group."""

import json

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from blip3o.errors import CheckpointError
from blip3o.train.initial_weights import require_agreement

SHIFTS = (0.0, 2.0, float("nan"))  # of the second rank's bias


def check_shifts(rank, folder):
    """Writes the error that a rank gets for each shift; None without an error."""
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/group", 2), rank=rank, world_size=2)
    found = []
    for shift in SHIFTS:
        module = nn.Linear(3, 2)
        for parameter in module.parameters():
            nn.init.constant_(parameter, 0.5)
        module.bias.data += shift if rank else 0.0
        try:
            require_agreement(module, torch.device("cpu"))
            found.append(None)
        except CheckpointError as error:
            found.append(str(error))
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_every_rank_reports_which_parameter_differs(tmp_path):
    mp.spawn(check_shifts, (tmp_path,), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    equal, other, undefined = first
    assert equal is None
    assert other.startswith("bias sums to 1.0 on one rank and to 5.0 on another")
    assert undefined.startswith("bias sums to 1.0 on one rank and to inf on another")
    assert second == first
