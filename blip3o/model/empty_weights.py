"""Building modules without allocating their parameters, whose weights are then set one by one."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

_DRAWS = frozenset({Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_})


@contextmanager
def init_empty_weights() -> Iterator[None]:
    """Modules built in this context have their parameters on the meta device; buffers are allocated as usual.

    So building costs neither the memory of the weights nor the time to initialize them. The hook is global to torch:
    build in one thread at a time.
    """
    hook = register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]  # it may return a parameter
    try:
        with _WithoutDraws():
            yield
    finally:
        hook.remove()


class _WithoutDraws(TorchFunctionMode):
    """Leaves out random draws into tensors on the meta device, which have no values.

    Torch 2.13 imports its compiler for such a draw: 3.5 s of a process's start.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - as torch calls it
        named = kwargs or {}
        if func in _DRAWS:
            tensor = args[0] if args else named["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **named)


def _to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    # A parameter that is on meta already must stay the same object, or tied weights would be untied.
    if parameter is None or parameter.is_meta:
        return None
    return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)


def tied_names(module: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter, by its first name: tied parameters have several."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return {group[0]: group for group in names.values()}


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a file of the module's weights holds, by name: each parameter once, and the buffers of its state dict."""
    parameters, state = dict(module.named_parameters()), module.state_dict()
    return parameters | {name: buffer for name, buffer in module.named_buffers() if name in state}


def set_parameter(module: nn.Module, names: list[str], tensor: Tensor) -> None:
    """Makes a tensor the parameter under these names, without copying it. It is trainable if the one before was."""
    parameter = nn.Parameter(tensor, requires_grad=module.get_parameter(names[0]).requires_grad)
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, parameter)
