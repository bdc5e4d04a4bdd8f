"""Modules whose parameters have shapes but no memory yet, to be given their weights one by one."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook


@contextmanager
def init_empty_weights() -> Iterator[None]:
    """Modules built inside hold parameters on the meta device, and their buffers as ever.

    So building costs neither the memory of the weights nor the time of numbers that will be replaced. The hook is
    global to torch: build in one thread at a time.
    """
    hook = register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]  # it may return a parameter
    try:
        yield
    finally:
        hook.remove()


def _to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    # One that is there already stays the same object, or tied weights would come apart.
    if parameter is None or parameter.is_meta:
        return None
    return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)


def tied_names(module: nn.Module) -> dict[str, list[str]]:
    """Every name of each parameter, by the first of them: tied ones have several."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return {group[0]: group for group in names.values()}


def set_parameter(module: nn.Module, names: list[str], tensor: Tensor) -> None:
    """Makes a tensor the parameter of these names, without a copy."""
    parameter = nn.Parameter(tensor)
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, parameter)
