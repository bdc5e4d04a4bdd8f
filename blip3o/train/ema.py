"""An exponential moving average, in fp32, of what a stage trains: spread over the ranks as the optimizer's weights are.

DeepSpeed keeps fp32 weights whole (ZeRO 0) or in pieces, spread over the ranks (1 to 3). A rank averages the pieces it
holds, so a step costs no communication. A checkpoint has one file per rank, whose pieces say where they belong: any
number of ranks, at any ZeRO stage, reads them back.

The decay grows as (1 + n) / (10 + n) with the steps n until it reaches its value, so that the first weights, which are
random, do not weigh on short runs (the rule of TensorFlow's moving averages).
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
class Piece:
    """Part of a parameter's fp32 weights, flat, [n]; `start` elements of the parameter are before it."""

    start: int
    values: Tensor


def fp32_pieces(engine: Any, parameters: Mapping[str, Tensor]) -> dict[str, Piece]:  # noqa: ANN401 - a DeepSpeedEngine
    """This rank's part of the optimizer's fp32 weights, by parameter name; where all ranks hold all, the first's."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        masters = _masters(engine.optimizer)
        found = {name: Piece(start=0, values=masters(p).detach().flatten()) for name, p in parameters.items()}
        return found if dist.get_rank() == 0 else {}
    if stage == 3:
        return {name: piece for name, p in parameters.items() if (piece := _partition(engine.optimizer, p)) is not None}
    mappings: dict[str, Any] = {name: p._hp_mapping for name, p in parameters.items()}  # type: ignore[attr-defined]
    return {
        name: Piece(start=held.lp_fragment_address.start, values=held.hp_fragment.detach())
        for name, held in mappings.items()
        if held is not None
    }


def _masters(optimizer: Any) -> Any:  # noqa: ANN401 - of DeepSpeed, or of torch in fp32
    if isinstance(optimizer, torch.optim.Optimizer):
        return lambda parameter: parameter
    groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    pairs = {id(half): full for halves, fulls in groups for half, full in zip(halves, fulls, strict=True)}
    return lambda parameter: pairs[id(parameter)]


def _partition(optimizer: Any, parameter: Any) -> Piece | None:  # noqa: ANN401 - as above; a parameter of ZeRO-3
    """Ranks hold equal parts of a parameter padded to a multiple of their number: padding is left out."""
    values = optimizer.get_local_fp32_param(parameter).detach()
    start = dist.get_rank() * values.numel()
    length = min(parameter.ds_numel - start, values.numel())
    return Piece(start=start, values=values[:length]) if length > 0 else None


class Ema(Callback):
    """The moving average of an engine's trainable parameters. Every rank has one and calls it in step."""

    def __init__(self, engine: Any, parameters: Mapping[str, Tensor], *, decay: float) -> None:  # noqa: ANN401
        """Starts at the weights as they are."""
        self._engine, self._parameters, self._decay = engine, dict(parameters), decay
        self._own = {
            name: Piece(start=piece.start, values=piece.values.clone()) for name, piece in self._pieces().items()
        }

    def _pieces(self) -> dict[str, Piece]:
        return fp32_pieces(self._engine, self._parameters)

    def after_step(self, done: int, record: StepRecord) -> None:
        """Takes in the weights that the step has left."""
        self.update(done)

    def update(self, done: int) -> None:
        """Takes in the weights after `done` optimizer steps of the stage."""
        decay = min(self._decay, (1 + done) / (10 + done))
        for name, piece in self._pieces().items():
            self._own[name].values.lerp_(piece.values, 1 - decay)

    def gather(self, *, keep: bool) -> dict[str, Tensor]:
        """The whole average by parameter name, fp32 on the CPU; empty where not `keep`. Every rank must call it."""
        found = {}
        for name, parameter in self._parameters.items():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            whole = torch.zeros(math.prod(shape), device=self._engine.device)
            if name in self._own:
                piece = self._own[name]
                whole[piece.start : piece.start + piece.values.numel()] = piece.values.to(whole.device)
            dist.all_reduce(whole)  # each element is on one rank: the others add zero
            if keep:
                found[name] = whole.view(shape).cpu()
        return found

    def save(self, directory: str) -> None:
        """Writes this rank's pieces, if it has any."""
        if self._own:
            tensors = {f"{piece.start}:{name}": piece.values.cpu() for name, piece in self._own.items()}
            save_file(tensors, Path(directory) / FILES.replace("*", f"{dist.get_rank():05d}"))

    def load(self, directory: str) -> None:
        """Restores this rank's pieces out of the files of all ranks that wrote them, however many those were.

        Raises `CheckpointError` if an element is in none of them.
        """
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(Path(directory).glob(FILES))]
            saved: dict[str, list[tuple[int, Any]]] = {}
            for file in files:
                for key in file.keys():
                    start, _, name = key.partition(":")
                    saved.setdefault(name, []).append((int(start), file.get_slice(key)))
            for name, piece in self._own.items():
                filled = sum(_copy(piece, start, stored) for start, stored in saved.get(name, []))
                if filled != piece.values.numel():
                    raise CheckpointError(
                        f"{directory}: {FILES} hold {filled} of the {piece.values.numel()} elements that this rank "
                        f"needs of {name}'s average: a file is missing"
                    )


def _copy(piece: Piece, start: int, stored: Any) -> int:  # noqa: ANN401 - a slice of safetensors
    """Copies what a stored piece has of this one; returns how many elements that were."""
    first = max(piece.start, start)
    last = min(piece.start + piece.values.numel(), start + stored.get_shape()[0])
    if first >= last:
        return 0
    piece.values[first - piece.start : last - piece.start] = stored[first - start : last - start].to(piece.values)
    return last - first


def read_ema(directory: Path) -> dict[str, Tensor]:
    """The average that all ranks saved below a directory, by parameter name, flat, fp32; empty where there is none."""
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for path in sorted(directory.glob(FILES)):
        for key, values in load_file(path).items():
            start, _, name = key.partition(":")
            pieces.setdefault(name, []).append((int(start), values))
    return {
        name: torch.cat([values for _, values in sorted(held, key=lambda piece: piece[0])])
        for name, held in pieces.items()
    }
