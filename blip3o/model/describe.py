"""Parameter counts of a model, from its modules on the meta device: nothing is allocated."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from blip3o.config.model import ModelConfig
from blip3o.model.unified import PARTS, UnifiedModel

META = torch.device("meta")
MAX_DEPTH = 3


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters of a module, or the total of `count` equal ones. `depth` is its nesting depth, 0 for a part."""

    name: str
    depth: int
    count: int
    parameters: int


def build_on_meta(config: ModelConfig) -> UnifiedModel:
    """The model with all its parts, on the meta device."""
    with META:
        # The image token's id affects no parameter's shape, and `max_length` only the text tower's positions.
        return UnifiedModel(config, image_token_id=0, parts=PARTS, max_length=config.num_queries)


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of a module; shared ones (a tied head) count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def parameter_counts(model: UnifiedModel) -> Iterator[ParameterCount]:
    """Rows for each part and its modules, down to `MAX_DEPTH`; a list of equal modules is one row."""
    for name in PARTS:
        part = getattr(model, name, None)
        if isinstance(part, nn.Parameter):
            yield ParameterCount(name=name, depth=0, count=1, parameters=part.numel())
        elif part is not None:
            yield from _module_counts(part, name, 0)


def _module_counts(module: nn.Module, name: str, depth: int) -> Iterator[ParameterCount]:
    parameters = count_parameters(module)
    if not parameters:
        return
    members = [count_parameters(child) for child in module.children()]
    equal = isinstance(module, nn.ModuleList) and len(set(members)) == 1
    yield ParameterCount(name=name, depth=depth, count=len(members) if equal else 1, parameters=parameters)
    if depth < MAX_DEPTH and not equal:
        for child_name, child in module.named_children():
            yield from _module_counts(child, f"{name}.{child_name}", depth + 1)
