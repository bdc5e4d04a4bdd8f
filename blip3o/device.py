"""Device selection. The only file that names CUDA; its GPU branches have not been verified on a GPU yet.

All other code gets a `torch.device` and the name of a backend from here.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from blip3o.errors import ConfigError

if TYPE_CHECKING:
    import torch

DeviceKind = Literal["cpu", "gpu"]
Execution = Literal["eager", "compile", "graph"]

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


def peak_memory(device: "torch.device") -> int:
    """Peak memory so far, bytes: that of tensors on a GPU, or the resident memory of this process for the CPU."""
    import resource

    import torch

    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return int(torch.cuda.max_memory_allocated(device))


def own_stream(device: "torch.device") -> AbstractContextManager[object]:
    """Work that is queued in this context does not wait for that of other threads. Nothing to do on the CPU.

    Tensors of another stream must be complete before they are used here.
    """
    import torch

    return nullcontext() if device.type == "cpu" else torch.cuda.stream(torch.cuda.Stream(device))


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A recorded function of fixed tensors: `replay` computes `output` again, from what the tensors then hold."""

    replay: Callable[[], None]
    output: "torch.Tensor"


def record_graph(function: "Callable[[], torch.Tensor]", device: "torch.device") -> Recorded:
    """Runs a function of fixed tensors, and records its kernels as a CUDA graph. It must not wait for the device."""
    import torch

    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # libraries choose kernels and allocate workspaces in the first calls
        for _ in range(3):
            function()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may allocate meanwhile
        output = function()
    return Recorded(replay=graph.replay, output=output)
