"""Gathers parameters that are partitioned over the ranks. Every rank must call these, with the same names in order."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


def is_partitioned(parameter: Tensor) -> bool:
    """Whether ZeRO-3 has partitioned the parameter: it gives every such parameter an id."""
    return hasattr(parameter, "ds_id")


@contextmanager
def gathered(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside the block, parameters partitioned by ZeRO-3 are complete on every rank; changes to them are lost."""
    partitioned = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not partitioned:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(partitioned):
        yield


def gather_parameters(parameters: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Copies of complete parameters on the CPU; empty if not `keep` (on other ranks than the first)."""
    found = {}
    # One at a time, so that a rank never holds more than one gathered parameter on its device.
    for name, parameter in parameters.items():
        with gathered([parameter]):
            if keep:
                found[name] = parameter.detach().cpu().clone()
    return found


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The model's trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
