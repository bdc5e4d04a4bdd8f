"""The optimizer's fp32 weights (masters), of which the model's bf16 parameters are the rounded copies.

DeepSpeed keeps them complete on every rank (ZeRO 0) or partitioned into fragments (ZeRO 1 to 3). It makes them from
parameters that it has already rounded, so a stage sets them again from the weights that it starts with, and its result
holds them: the next stage then starts exactly where this one ended.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A contiguous part of a parameter's flattened fp32 weights: `values` [n], at offset `start`."""

    start: int
    values: Tensor


def fp32_fragments(engine: Any, parameters: Mapping[str, Tensor]) -> dict[str, Fragment]:  # noqa: ANN401 - a DeepSpeedEngine
    """This rank's fragments of the optimizer's fp32 weights, by parameter name.

    Every element is on exactly one rank: at ZeRO stage 0, where all ranks hold everything, on rank 0.
    """
    if engine.zero_optimization_stage() == 0 and dist.get_rank() != 0:
        return {}
    return _held_fragments(engine, parameters)


def _held_fragments(engine: Any, parameters: Mapping[str, Tensor]) -> dict[str, Fragment]:  # noqa: ANN401 - as above
    """Everything that this rank holds of the fp32 weights."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        masters = _masters(engine.optimizer)
        return {name: Fragment(start=0, values=masters(p).detach().flatten()) for name, p in parameters.items()}
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


def set_masters(engine: Any, parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:  # noqa: ANN401
    """Sets the optimizer's fp32 weights to complete tensors, by parameter name.

    The parameters must already be the rounded values.
    """
    named = {name: parameters[name] for name in values}
    for name, fragment in _held_fragments(engine, named).items():
        own = values[name].flatten()[fragment.start : fragment.start + fragment.values.numel()]
        if engine.zero_optimization_stage() == 3:
            # A fragment of offloaded weights is a copy on the device, hence DeepSpeed's own setter. It takes padding.
            padded = torch.zeros(named[name].ds_tensor.numel(), dtype=own.dtype, device=own.device)  # type: ignore[attr-defined]
            padded[: own.numel()] = own
            engine.optimizer.set_local_hp_param(padded, named[name])
        else:
            fragment.values.copy_(own)


def gather_fragments(
    fragments: Mapping[str, Fragment],
    parameters: Mapping[str, Tensor],
    *,
    device: torch.device,
    keep: bool,
) -> dict[str, Tensor]:
    """Complete tensors from the fragments of all ranks, by parameter name, fp32 on the CPU; empty if not `keep`.

    Every rank must call it.
    """
    found = {}
    for name, parameter in parameters.items():
        shape = getattr(parameter, "ds_shape", parameter.shape)  # under ZeRO-3 the parameter's own shape is [0]
        whole = torch.zeros(math.prod(shape), device=device)
        if name in fragments:
            fragment = fragments[name]
            whole[fragment.start : fragment.start + fragment.values.numel()] = fragment.values.to(whole.device)
        dist.all_reduce(whole)  # each element is on one rank; the others add zero
        if keep:
            found[name] = whole.view(shape).cpu()
    return found
