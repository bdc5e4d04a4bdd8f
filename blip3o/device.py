"""Device selection. The only file that names CUDA; its GPU branches have not been verified on a GPU yet.

All other code gets a `torch.device` and the name of a backend from here.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from blip3o import settings
from blip3o.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
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


def choose_accelerator(kind: DeviceKind) -> None:
    """Makes DeepSpeed compute on this kind of device; call it before DeepSpeed is imported.

    By itself DeepSpeed takes a GPU wherever torch sees one, also in a worker whose recipe is for the CPU.
    """
    settings.override({"DS_ACCELERATOR": accelerator_name(kind)})


def accelerator_name(kind: DeviceKind) -> str:
    """DeepSpeed's and torch's name for this kind of device."""
    return "cuda" if kind == "gpu" else "cpu"


def allow_determinism() -> None:
    """Gives matrix products on a GPU workspaces of a fixed size, without which they may differ from call to call.

    Call it before the first product on a GPU: the setting is read once.
    """
    settings.override({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"})


def release_memory(device: "torch.device") -> int:
    """Collects what is no longer referenced and returns the GPU's cached memory to the driver.

    Returns the bytes of tensors that are still allocated on the device; 0 for the CPU, where nothing counts them.
    """
    import torch

    gc.collect()  # engines, modules and their hooks refer to each other
    if device.type == "cpu":
        return 0
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_allocated(device))


def fatal_errors() -> tuple[type[Exception], ...]:
    """Errors after which a process can use its GPU no more, such as an illegal access: every later call fails too.

    Memory that ran out is none of them. torch has a class for them from 2.8 on; before, none can be distinguished.
    """
    import torch

    found = getattr(torch, "AcceleratorError", None)
    return () if found is None else (found,)


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
    """A copy of an array on a device, as `send` makes it."""
    import torch

    return send(torch.tensor(array), device)


def send(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """A tensor of the CPU on a device. A copy to a GPU goes through pinned memory, and nothing waits for its end."""
    if device.type in ("cpu", "meta"):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


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


def reset_peak_memory(device: "torch.device") -> None:
    """Makes `peak_memory` of a GPU count from here; the CPU's peak is the process's and cannot be reset."""
    import torch

    if device.type != "cpu":
        torch.cuda.reset_peak_memory_stats(device)


def synchronize(device: "torch.device") -> None:
    """Waits until the device has done all work that was launched; the CPU always has."""
    import torch

    if device.type != "cpu":
        torch.cuda.synchronize(device)


def facts(device: "torch.device") -> dict[str, Any]:
    """The card's name and memory in bytes, its driver, and the versions of CUDA and cuDNN; nothing for the CPU."""
    import shutil
    import subprocess

    import torch

    if device.type == "cpu":
        return {}
    properties = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = "unknown"
    if shutil.which(query[0]):
        driver = subprocess.run(query, capture_output=True, encoding="utf-8", check=False).stdout.partition("\n")[0]
    return {
        "card": properties.name,
        "memory": properties.total_memory,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


GPU_QUERY = (
    "index",
    "name",
    "driver_version",
    "ecc.errors.uncorrected.volatile.total",
    "clocks_throttle_reasons.hw_slowdown",
    "clocks_throttle_reasons.hw_thermal_slowdown",
    "clocks_throttle_reasons.sw_thermal_slowdown",
)


@dataclass(frozen=True, kw_only=True)
class GpuHealth:
    """One GPU as `nvidia-smi` describes it; `throttled` names the active reasons that are faults."""

    index: int
    name: str
    driver: str
    ecc_errors: int
    throttled: list[str]


def gpu_health() -> list[GpuHealth]:
    """The GPUs of this machine, also those that Ray hides from this process; none without `nvidia-smi`."""
    import shutil
    import subprocess

    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader"]
    return parse_gpus(subprocess.run(query, capture_output=True, encoding="utf-8", check=False).stdout)


def parse_gpus(text: str) -> list[GpuHealth]:
    """Reads the answer to `GPU_QUERY`. A line that is not one, such as a message, is left out."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(GPU_QUERY) or not cells[0].isdigit():
            continue
        index, name, driver, errors, *reasons = cells
        active = [
            key.rpartition(".")[2] for key, state in zip(GPU_QUERY[4:], reasons, strict=True) if state == "Active"
        ]
        count = int(errors) if errors.isdigit() else 0  # [N/A] for a GPU without ECC
        found.append(GpuHealth(index=int(index), name=name, driver=driver, ecc_errors=count, throttled=active))
    return found


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Inside the block, fp32 products and convolutions on a GPU are not rounded to TF32."""
    import torch

    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matrices.allow_tf32, convolutions.allow_tf32
    matrices.allow_tf32 = convolutions.allow_tf32 = False
    try:
        yield
    finally:
        matrices.allow_tf32, convolutions.allow_tf32 = before


def profiler(device: "torch.device") -> Any:  # noqa: ANN401 - a torch.profiler.profile
    """torch's profiler of what the CPU launches and, on a GPU, of the kernels."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU] if device.type == "cpu" else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    return profile(activities=kinds)


def kernel_seconds(profiled: Any, device: "torch.device") -> dict[str, float]:  # noqa: ANN401 - what `profiler` gives
    """Seconds of each kernel on a GPU, or of each of torch's operations on the CPU, by name, longest first."""
    from torch.autograd import DeviceType

    on_gpu = device.type != "cpu"
    kind, attribute = (DeviceType.CUDA, "self_device_time_total") if on_gpu else (DeviceType.CPU, "self_cpu_time_total")
    # Annotations span the kernels below them, whose time would count twice.
    events = [e for e in profiled.key_averages() if e.device_type == kind and not e.is_user_annotation]
    seconds = {event.key: getattr(event, attribute) / 1e6 for event in events}
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))
