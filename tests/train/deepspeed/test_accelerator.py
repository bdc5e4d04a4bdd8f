"""DeepSpeed computes on the recipe's device, whatever torch sees: in processes where torch sees a pretended GPU."""

import subprocess
import sys

import pytest

from blip3o import settings

PREPARES = """
import sys
import torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
device, order = sys.argv[1:]
if order == "too late":
    import deepspeed
from blip3o.errors import ConfigError
from blip3o.train.deepspeed.engine import prepare_process
from tests.recipes import recipe
try:
    prepare_process(recipe(parallel={"device": device, "zero_stage": 1}).parallel)
    import deepspeed
    print(deepspeed.get_accelerator().device_name())
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("device", "order", "expected"),
    [
        ("cpu", "in time", "cpu"),
        ("gpu", "in time", "cuda"),
        ("cpu", "too late", "parallel.device is 'cpu' (cpu), and DeepSpeed was imported in this process for 'cuda': "),
    ],
)
def test_deepspeed_takes_the_device_of_the_recipe(device, order, expected):
    environment = settings.child_environment({})
    environment.pop("DS_ACCELERATOR", None)
    command = [sys.executable, "-c", PREPARES, device, order]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1].startswith(expected), done.stdout + done.stderr
