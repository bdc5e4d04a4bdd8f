"""What a model weighs, counted from its modules without making it: everything here is on the meta device."""

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
    """Parameters of a module, or together of `count` equal ones. `depth` is how deep it lies, 0 for a part."""

    name: str
    depth: int
    count: int
    parameters: int


def build_on_meta(config: ModelConfig) -> UnifiedModel:
    """The model with all its parts and no storage."""
    with META:
        # No parameter's shape depends on the image token's id, and on the length only the text tower's positions.
        return UnifiedModel(config, image_token_id=0, parts=PARTS, max_length=config.num_queries)


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module; one that is used in two places (a tied head) counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def parameter_counts(model: UnifiedModel) -> Iterator[ParameterCount]:
    """Parts in order, each with its modules `MAX_DEPTH` deep; a list of equal modules is one row."""
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
