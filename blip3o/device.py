"""Where arithmetic happens. The only file that knows CUDA by name; the GPU branches are unverified on GPU so far.

Everything else receives a `torch.device`, a dtype and a backend name from here.
"""

from typing import TYPE_CHECKING, Literal

from blip3o.errors import ConfigError

if TYPE_CHECKING:
    import torch

DeviceKind = Literal["cpu", "gpu"]


def select(kind: DeviceKind, *, local_rank: int = 0) -> "torch.device":
    """The device of one worker. Raises `ConfigError` if a GPU is asked for and this process sees none."""
    import torch

    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "parallel.device is 'gpu' but this process sees none: set parallel.device=cpu, or run on a GPU node"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def collective_backend(kind: DeviceKind) -> str:
    """The torch.distributed backend for this kind of device."""
    return "nccl" if kind == "gpu" else "gloo"


def gpus_per_worker(kind: DeviceKind) -> int:
    """GPUs that one training worker reserves."""
    return 1 if kind == "gpu" else 0
