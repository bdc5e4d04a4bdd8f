"""An exponential moving average (EMA) of the trained parameters, in fp32, partitioned like the optimizer's weights.

A rank averages the fragments that it holds (`blip3o.train.deepspeed.masters`), so a step needs no communication. A
checkpoint has one file per rank, in which each fragment has its parameter's name and offset: any number of ranks, at
any ZeRO stage, can load it.

After n steps the decay is at most (1 + n) / (10 + n), so that the random initial weights do not dominate short runs
(the rule of TensorFlow's moving averages).
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip3o.errors import CheckpointError
from blip3o.train.callbacks import Callback, StepRecord
from blip3o.train.deepspeed.masters import Fragment, fp32_fragments, gather_fragments

FILES = "average-*.safetensors"


class Ema(Callback):
    """The moving average of an engine's trainable parameters. Every rank has one, and all call it at the same steps."""

    def __init__(self, engine: Any, parameters: Mapping[str, Tensor], *, decay: float) -> None:  # noqa: ANN401
        """Starts from the current weights."""
        self._engine, self._parameters, self._decay = engine, dict(parameters), decay
        self._own = {
            name: Fragment(start=fragment.start, values=fragment.values.clone())
            for name, fragment in self._current().items()
        }

    def _current(self) -> dict[str, Fragment]:
        return fp32_fragments(self._engine, self._parameters)

    def after_step(self, done: int, record: StepRecord) -> None:
        """Adds the weights after this step to the average."""
        self.update(done)

    def update(self, done: int) -> None:
        """Adds the weights after `done` optimizer steps of the stage to the average."""
        decay = min(self._decay, (1 + done) / (10 + done))
        for name, fragment in self._current().items():
            self._own[name].values.lerp_(fragment.values, 1 - decay)

    def gather(self, *, keep: bool) -> dict[str, Tensor]:
        """The complete average by parameter name, fp32 on the CPU; empty if not `keep`. Every rank must call it."""
        return gather_fragments(self._own, self._parameters, device=self._engine.device, keep=keep)

    def save(self, directory: str) -> None:
        """Writes this rank's fragments, if it has any."""
        if self._own:
            tensors = {f"{fragment.start}:{name}": fragment.values.cpu() for name, fragment in self._own.items()}
            save_file(tensors, Path(directory) / FILES.replace("*", f"{dist.get_rank():05d}"))

    def load(self, directory: str) -> None:
        """Restores this rank's fragments from the files of all ranks that saved, whatever their number.

        Raises `CheckpointError` if an element is in none of the files.
        """
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(Path(directory).glob(FILES))]
            saved: dict[str, list[tuple[int, Any]]] = {}
            for file in files:
                for key in file.keys():
                    start, _, name = key.partition(":")
                    saved.setdefault(name, []).append((int(start), file.get_slice(key)))
            for name, fragment in self._own.items():
                filled = sum(_copy(fragment, start, stored) for start, stored in saved.get(name, []))
                if filled != fragment.values.numel():
                    raise CheckpointError(
                        f"{directory}: {FILES} hold {filled} of the {fragment.values.numel()} elements that this rank "
                        f"needs of {name}'s average: a file is missing"
                    )


def _copy(fragment: Fragment, start: int, stored: Any) -> int:  # noqa: ANN401 - a slice of safetensors
    """Copies the overlap of a stored fragment with this one; returns the number of copied elements."""
    first = max(fragment.start, start)
    last = min(fragment.start + fragment.values.numel(), start + stored.get_shape()[0])
    if first >= last:
        return 0
    overlap = stored[first - start : last - start]
    fragment.values[first - fragment.start : last - fragment.start] = overlap.to(fragment.values)
    return last - first


def read_ema(directory: Path) -> dict[str, Tensor]:
    """The average that all ranks saved below a directory, by parameter name, flattened, fp32; empty without files."""
    fragments: dict[str, list[tuple[int, Tensor]]] = {}
    for path in sorted(directory.glob(FILES)):
        for key, values in load_file(path).items():
            start, _, name = key.partition(":")
            fragments.setdefault(name, []).append((int(start), values))
    return {
        name: torch.cat([values for _, values in sorted(held, key=lambda fragment: fragment[0])])
        for name, held in fragments.items()
    }
