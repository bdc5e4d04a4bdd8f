"""An exponential moving average (EMA) of the trained parameters, in fp32, partitioned like the optimizer's weights.

DeepSpeed keeps the fp32 weights complete on every rank (ZeRO 0) or partitioned into fragments (ZeRO 1 to 3). A rank
averages the fragments that it holds, so a step needs no communication. A checkpoint has one file per rank, in which
each fragment has its parameter's name and offset: any number of ranks, at any ZeRO stage, can load it.

After n steps the decay is at most (1 + n) / (10 + n), so that the random initial weights do not dominate short runs
(the rule of TensorFlow's moving averages).
"""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip3o.errors import CheckpointError
from blip3o.train.callbacks import Callback, StepRecord

FILES = "average-*.safetensors"


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A contiguous part of a parameter's flattened fp32 weights: `values` [n], at offset `start`."""

    start: int
    values: Tensor


def fp32_fragments(engine: Any, parameters: Mapping[str, Tensor]) -> dict[str, Fragment]:  # noqa: ANN401 - a DeepSpeedEngine
    """This rank's fragments of the optimizer's fp32 weights, by parameter name.

    Every element is on exactly one rank: at ZeRO stage 0, where all ranks hold everything, on rank 0.
    """
    stage = engine.zero_optimization_stage()
    if stage == 0:
        masters = _masters(engine.optimizer)
        found = {name: Fragment(start=0, values=masters(p).detach().flatten()) for name, p in parameters.items()}
        return found if dist.get_rank() == 0 else {}
    if stage == 3:
        partitions = {name: _partition(engine.optimizer, p) for name, p in parameters.items()}
        return {name: fragment for name, fragment in partitions.items() if fragment is not None}
    # At stages 1 and 2 DeepSpeed links each low-precision parameter (lp) to its fragment of the fp32 weights (hp).
    mappings: dict[str, Any] = {name: p._hp_mapping for name, p in parameters.items()}  # type: ignore[attr-defined]
    return {
        name: Fragment(start=held.lp_fragment_address.start, values=held.hp_fragment.detach())
        for name, held in mappings.items()
        if held is not None
    }


def _masters(optimizer: Any) -> Any:  # noqa: ANN401 - of DeepSpeed, or of torch in fp32
    """A function from a parameter to its fp32 master weights: in fp32 the parameter itself."""
    if isinstance(optimizer, torch.optim.Optimizer):
        return lambda parameter: parameter
    groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    pairs = {id(half): full for halves, fulls in groups for half, full in zip(halves, fulls, strict=True)}
    return lambda parameter: pairs[id(parameter)]


def _partition(optimizer: Any, parameter: Any) -> Fragment | None:  # noqa: ANN401 - as above; a parameter of ZeRO-3
    """This rank's fragment. The parameter is padded to a multiple of the number of ranks; padding is dropped."""
    values = optimizer.get_local_fp32_param(parameter).detach()
    start = dist.get_rank() * values.numel()
    length = min(parameter.ds_numel - start, values.numel())
    return Fragment(start=start, values=values[:length]) if length > 0 else None


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
        found = {}
        for name, parameter in self._parameters.items():
            shape = getattr(parameter, "ds_shape", parameter.shape)  # under ZeRO-3 the parameter's own shape is [0]
            whole = torch.zeros(math.prod(shape), device=self._engine.device)
            if name in self._own:
                fragment = self._own[name]
                whole[fragment.start : fragment.start + fragment.values.numel()] = fragment.values.to(whole.device)
            dist.all_reduce(whole)  # each element is on one rank; the others add zero
            if keep:
                found[name] = whole.view(shape).cpu()
        return found

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
