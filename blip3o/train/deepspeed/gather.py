"""Whole tensors out of what is spread over the ranks. Every rank must call these, with the same names in one order."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


def is_spread(parameter: Tensor) -> bool:
    """Whether ZeRO-3 holds a share of the parameter on each rank: it marks every such one with an id."""
    return hasattr(parameter, "ds_id")


@contextmanager
def whole(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside, parameters that ZeRO-3 spread over the ranks are whole on each of them; changes to them are lost."""
    spread = [parameter for parameter in parameters if is_spread(parameter)]
    if not spread:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(spread):
        yield


def gather_parameters(parameters: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Copies of whole parameters on the CPU, one gathered after the other; none where not `keep` (on other ranks)."""
    found = {}
    for name, parameter in parameters.items():
        with whole([parameter]):
            if keep:
                found[name] = parameter.detach().cpu().clone()
    return found


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The model's trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
