"""The DeepSpeed engine of a stage, built from the recipe only.

The engine's clipping, precision, ZeRO stage and offload are read back and compared with the recipe: options that were
silently ignored made runs of the upstream code diverge. No DeepSpeed extension is compiled, since the optimizer is
PyTorch's AdamW or ours.
"""

import logging
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from blip3o.config.recipe import Recipe
from blip3o.config.training import ParallelConfig
from blip3o.device import accelerator_name, allow_determinism, choose_accelerator, collective_backend
from blip3o.errors import ConfigError
from blip3o.model.activation_checkpointing import checkpoint_activations
from blip3o.train.deepspeed.config import adamw_options, deepspeed_config, describe_engine
from blip3o.train.deepspeed.gather import is_partitioned, trainable_parameters
from blip3o.train.deepspeed.masters import set_masters
from blip3o.train.muon import build_optimizer
from blip3o.train.objectives import StageModule
from blip3o.train.stages import freeze, stage_of

logger = logging.getLogger(__name__)


def prepare_process(parallel: ParallelConfig) -> None:
    """Sets what holds for the whole process: DeepSpeed's accelerator, and whether algorithms must be deterministic.

    Each stage sets all of it, so nothing of an earlier stage remains. Raises `ConfigError` if this process has already
    imported DeepSpeed for another kind of device: it would compute there.
    """
    if parallel.deterministic:
        allow_determinism()
    torch.use_deterministic_algorithms(parallel.deterministic)
    # By default torch then fills every new tensor with NaN, also the gigabytes of a module that is built empty.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch sets it late
    choose_accelerator(parallel.device)
    import deepspeed

    wanted, chosen = accelerator_name(parallel.device), deepspeed.get_accelerator().device_name()
    if chosen != wanted:
        raise ConfigError(
            f"parallel.device is '{parallel.device}' ({wanted}), and DeepSpeed was imported in this process for "
            f"'{chosen}': start another process, or import DeepSpeed with DS_ACCELERATOR={wanted}"
        )


def build_engine(recipe: Recipe, module: StageModule, *, universal: bool = False) -> Any:  # noqa: ANN401 - a deepspeed.DeepSpeedEngine
    """Freezes parameters by the stage, wraps the module and moves it to its device. The process group must exist.

    Under ZeRO-3 every parameter, frozen ones too, is then partitioned over the ranks. It is only complete inside the
    engine's forward and backward, and where it is gathered (`blip3o.train.deepspeed.gather`).

    Raises `ConfigError` if the engine does not apply the recipe's clipping, precision, ZeRO stage or offload.
    """
    prepare_process(recipe.parallel)
    import deepspeed

    if recipe.parallel.device == "cpu":
        _leave_out_extension()
    deepspeed.init_distributed(dist_backend=collective_backend(recipe.parallel.device))
    if dist.get_rank() == 0:
        logger.info("%s: %s", recipe.run.name, describe_engine(recipe))
    freeze(module.model, stage_of(recipe))
    if recipe.parallel.activation_checkpointing:
        checkpoint_activations(module.model)
    if recipe.parallel.compiles:
        module.model.compile_layers()
    trainable = trainable_parameters(module.model)
    # DeepSpeed gives its parameters new, rounded storage. These views keep the storage that they have now.
    exact = {name: p.detach() for name, p in trainable.items() if recipe.parallel.precision == "bf16"}
    # The loop sets the learning rate at each step. It starts at 0 because `deepspeed.initialize` may take a step with
    # zero gradients to create the optimizer's state, and with a learning rate that step would decay the weights.
    optimizer = build_optimizer(recipe.optim, trainable, lr=0.0, **adamw_options(recipe.parallel))
    if recipe.parallel.zero_stage == 3:
        _register_external_parameters(module)
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=list(trainable.values()),
        optimizer=optimizer,
        config=deepspeed_config(recipe, universal=universal),
    )
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        _record_grad_norm(engine)
    elif recipe.parallel.zero_stage == 0:
        # DeepSpeed's own step, with zero gradients, created the optimizer's state. AdamW would count it as the first
        # step in its bias correction.
        engine.optimizer.optimizer.state.clear()
    _require_applied(engine, recipe)
    set_masters(engine, trainable, exact)
    return engine


def _leave_out_extension() -> None:
    """Keeps DeepSpeed from compiling a C++ extension, which only inference uses, on every CPU machine.

    On a GPU machine DeepSpeed does not want it, and reading this table would probe its GPU extensions with compilers.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _register_external_parameters(module: nn.Module) -> None:
    """Makes the top module's forward gather the parameters of modules without a forward of their own.

    ZeRO-3 gathers a module's parameters in a hook of its forward. The queries and the latents' scale belong to modules
    of which only other methods are called, so no hook would run for them.
    """
    from deepspeed.runtime.zero import register_external_parameter

    for part in module.modules():
        if type(part).forward is nn.Module.forward:
            for parameter in part.parameters(recurse=False):
                register_external_parameter(module, parameter)


def _record_grad_norm(engine: Any) -> None:  # noqa: ANN401 - as above
    """Makes the engine report the gradient norm at ZeRO stage 0 in fp32, where DeepSpeed clips without recording it."""

    def clip() -> None:
        parameters = [p for group in engine.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, engine.gradient_clipping())
        engine.optimizer._global_grad_norm = norm  # read by `engine.get_global_grad_norm`

    engine.clip_fp32_gradients = clip


def _require_applied(engine: Any, recipe: Recipe) -> None:  # noqa: ANN401 - as above
    """Raises `ConfigError` if the engine runs with other options than the recipe's."""
    parallel = recipe.parallel
    expected: dict[str, Any] = {
        "clipping": recipe.optim.max_grad_norm,
        "bf16": parallel.precision == "bf16",
        "ZeRO stage": parallel.zero_stage,
        "accumulation": recipe.accumulation,
        "optimizer on the CPU": parallel.offload != "none",
        "parameters on the CPU": parallel.offload == "parameters",
        "parameters partitioned": parallel.zero_stage == 3,
        "gradients accumulated in": parallel.accumulation_dtype,
        "gradients reduced in": parallel.reduction_dtype,
        "reduction overlapped": parallel.overlaps,
        "buffers below fp32": [],
    }
    actual = {
        "clipping": engine.gradient_clipping(),
        "bf16": engine.bfloat16_enabled(),
        "ZeRO stage": engine.zero_optimization_stage(),
        "accumulation": engine.gradient_accumulation_steps(),
        "optimizer on the CPU": _on_cpu(engine.zero_offload_optimizer()),
        "parameters on the CPU": _on_cpu(engine.zero_offload_param()),
        "parameters partitioned": all(is_partitioned(parameter) for parameter in engine.module.parameters()),
        "gradients accumulated in": _SHORT[engine.get_data_types()[1]],
        "gradients reduced in": _SHORT[engine.communication_data_type],
        "reduction overlapped": bool(engine.zero_overlap_comm()),
        # Rotary frequencies, for one: rounded, they are other angles than those that serving computes with.
        "buffers below fp32": [name for name, buffer in engine.module.named_buffers() if _is_rounded(buffer)],
    }
    wrong = [f"{name} = {actual[name]} (recipe: {value})" for name, value in expected.items() if actual[name] != value]
    if wrong:
        raise ConfigError(f"DeepSpeed does not apply the recipe: it runs with {', '.join(wrong)}")


_SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def _is_rounded(buffer: Tensor) -> bool:
    return buffer.is_floating_point() and buffer.dtype.itemsize < torch.float32.itemsize


def _on_cpu(section: Any) -> bool:  # noqa: ANN401 - a section of DeepSpeed's configuration, or None
    return section is not None and section.device == "cpu"
