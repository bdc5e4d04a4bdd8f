"""Frees what an engine holds, so that the next stage of the same worker starts as in a new process."""

import sys
from typing import Any

import torch


def release_engine(engine: Any) -> None:  # noqa: ANN401 - a DeepSpeedEngine
    """Ends an engine. Its memory is freed once the caller drops its own references and collects garbage.

    DeepSpeed's own `destroy` leaves its engines of ZeRO 3 in global variables, and their replacement of torch's linear
    layer in place, which rounds in another way.
    """
    from deepspeed.runtime.zero import parameter_offload, partition_parameters, partitioned_param_coordinator

    module = engine.module
    engine.destroy()
    torch.use_deterministic_algorithms(mode=False)
    parameter_offload.FWD_MODULE_STACK.clear()
    _clear_method_caches(partitioned_param_coordinator.PartitionedParameterCoordinator)
    original = getattr(partition_parameters.InsertPostInitMethodToModuleSubClasses, "linear_bk", None)
    if original is not None:
        torch.nn.functional.linear = original
    for parameter in module.parameters():
        # DeepSpeed's attributes of a parameter refer to it, and Python does not collect a tensor in a cycle of which
        # a part is torch's.
        parameter.__dict__.clear()
    if "torch._dynamo" in sys.modules:
        # It compiles a layer's code up to a limit, then runs it eagerly. A stage would count what those before it have
        # compiled.
        torch._dynamo.reset()


def _clear_method_caches(owner: type) -> None:
    """Clears the `functools.lru_cache` of each method, also below a decorator; its keys hold modules and `self`."""
    for method in vars(owner).values():
        cells = getattr(method, "__closure__", None) or ()
        for function in (method, *(cell.cell_contents for cell in cells)):
            clear = getattr(function, "cache_clear", None)
            if clear is not None:
                clear()
