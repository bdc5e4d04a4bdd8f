"""Device selection. The only file that names CUDA; its GPU branches have not been verified on a GPU yet.

All other code gets a `torch.device` and the name of a backend from here.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from blip3o.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch

DeviceKind = Literal["cpu", "gpu"]

# Peak dense bf16 FLOP/s from the vendors' data sheets (without sparsity), by a part of the device's name; the first
# match counts. For other dtypes and devices, set `parallel.peak_tflops`.
PEAK_BF16 = {
    "B200": 2250e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


def select(kind: DeviceKind, *, local_rank: int = 0) -> "torch.device":
    """The device of one worker. Raises `ConfigError` if a GPU is requested and this process sees none."""
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


def peak_flops(device: "torch.device", precision: str) -> float | None:
    """The device's peak FLOP/s by `PEAK_BF16`; None for a CPU, another precision, or an unknown device."""
    import torch

    if device.type == "cpu" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BF16.items() if part in name), None)


def pinned(tensors: "dict[str, torch.Tensor]", device: "torch.device") -> "dict[str, torch.Tensor]":
    """Tensors on the CPU, in page-locked memory if the device is a GPU, so that no copy to it blocks the CPU."""
    return tensors if device.type == "cpu" else {name: tensor.pin_memory() for name, tensor in tensors.items()}


def peak_memory(device: "torch.device") -> int:
    """Peak memory so far, bytes: that of tensors on a GPU, or the resident memory of this process for the CPU."""
    import resource

    import torch

    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return int(torch.cuda.max_memory_allocated(device))


def upload(array: "np.ndarray", device: "torch.device") -> "torch.Tensor":
    """A copy of an array on a device. The copy to a GPU goes through pinned memory, and nothing waits for its end."""
    import torch

    host = torch.tensor(array)
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


def download(tensor: "torch.Tensor") -> "Callable[[], torch.Tensor]":
    """Starts to copy a tensor to the host; the function returned waits for the copy and gives it.

    The caller of that function waits without the GIL, so that other threads may launch more work meanwhile. A tensor of
    the CPU is returned as it is.
    """
    import torch

    if tensor.device.type == "cpu":
        return lambda: tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)
    copied.record(torch.cuda.current_stream(tensor.device))

    def wait() -> "torch.Tensor":
        copied.synchronize()
        return host

    return wait
