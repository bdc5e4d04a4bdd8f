"""How the denoiser runs: eagerly, its blocks compiled by torch.compile, or as graphs that are recorded and replayed.

Inference calls it with two shapes only: rows with guidance and rows without. So each is compiled or recorded once.
Replaying runs the kernels of eager execution, and so gives its values; a compiled denoiser differs from it by rounding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from blip3o.device import Execution, Recorded, record_graph
from blip3o.errors import ConfigError, one_line
from blip3o.model.condition import Condition, Denoiser
from blip3o.model.unified import UnifiedModel

Recorder = Callable[[Callable[[], Tensor]], Recorded]


def set_execution(
    model: UnifiedModel, execution: Execution, *, batch_size: int, device: torch.device, backend: str = "inductor"
) -> None:
    """Makes the denoiser run in this way, in place, and compiles or records both shapes. `eager` changes nothing.

    `backend` is torch.compile's.

    Raises `ConfigError` where the device or the machine cannot: graphs without a GPU, or compiling for the CPU without
    a C++ compiler.
    """
    if execution == "eager":
        return
    if execution == "graph":
        if device.type == "cpu":
            raise ConfigError("execution 'graph' needs a GPU: use eager or compile")
        replay_graphs(model.denoiser, lambda function: record_graph(function, device))
    else:
        # Blocks are of one class, so each shape is compiled once for all of them.
        for block in model.denoiser.blocks:
            block.compile(fullgraph=True, dynamic=False, backend=backend)
    try:
        _warm_up(model, batch_size, device)
    except RuntimeError as error:  # dynamo's and inductor's errors, and those of the device
        raise ConfigError(f"execution '{execution}' does not work here ({one_line(error)}): use eager") from error


def replay_graphs(denoiser: Denoiser[Any], record: Recorder) -> None:
    """Replaces the denoiser's forward by one that records a graph for each shape of its inputs, and then replays it."""
    denoiser.forward = _Replayed(denoiser.forward, record)  # type: ignore[method-assign,assignment]


@torch.inference_mode()
def _warm_up(model: UnifiedModel, batch_size: int, device: torch.device) -> None:
    dtype = next(model.denoiser.parameters()).dtype
    shape = (batch_size, model.config.num_queries, model.config.backbone.hidden_size)
    noise = torch.zeros(batch_size, *model.latent_shape, device=device)
    for guidance in (1.0, 2.0):
        states = torch.zeros(shape, device=device, dtype=dtype)
        model.sample_features(states, noise, num_inference_steps=1, guidance_scale=guidance)


class _Replayed:
    """A denoiser's forward whose kernels are replayed. A graph reads and writes fixed memory: inputs are copied in."""

    def __init__(self, forward: Callable[[Tensor, Tensor, Any], Tensor], record: Recorder) -> None:
        self._forward, self._record = forward, record
        self._graphs: dict[tuple[torch.Size, ...], tuple[list[Tensor], Recorded]] = {}

    def __call__(self, latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
        inputs = [latents, time, *condition.tensors]
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = self._recorded(inputs, condition)
        fixed, graph = self._graphs[shapes]
        torch._foreach_copy_(fixed, inputs)
        graph.replay()
        return graph.output.clone()  # the next replay overwrites it

    def _recorded(self, inputs: Sequence[Tensor], condition: Condition) -> tuple[list[Tensor], Recorded]:
        fixed = [tensor.clone() for tensor in inputs]
        latents, time, *tensors = fixed
        prepared = condition.with_tensors(tensors)
        return fixed, self._record(lambda: self._forward(latents, time, prepared))
