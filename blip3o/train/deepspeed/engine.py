"""The DeepSpeed engine of a stage, built from the recipe only.

The engine's clipping, precision, ZeRO stage and offload are read back and compared with the recipe: options that were
silently ignored made runs of the upstream code diverge. No DeepSpeed extension is compiled, since the optimizer is
torch's AdamW.
"""

from typing import Any

import torch
from torch import nn

from blip3o.config.recipe import Recipe
from blip3o.device import collective_backend
from blip3o.errors import ConfigError
from blip3o.model.activation_checkpointing import checkpoint_activations
from blip3o.train.deepspeed.gather import is_partitioned
from blip3o.train.objectives import StageModule
from blip3o.train.schedule import parameter_groups
from blip3o.train.stages import freeze, stage_of


def deepspeed_config(recipe: Recipe, *, universal: bool = False) -> dict[str, Any]:
    """DeepSpeed's configuration for this recipe; `universal` to load a checkpoint of another number of ranks."""
    parallel = recipe.parallel
    zero: dict[str, Any] = {"stage": parallel.zero_stage, "overlap_comm": False}
    cpu_memory = {"device": "cpu", "pin_memory": parallel.device == "gpu"}
    if parallel.offload != "none":
        zero["offload_optimizer"] = cpu_memory
    if parallel.offload == "parameters":
        zero["offload_param"] = cpu_memory
    if parallel.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = parallel.param_persistence_threshold
    return {
        "train_micro_batch_size_per_gpu": recipe.optim.micro_batch_size,
        "gradient_accumulation_steps": recipe.accumulation,
        "gradient_clipping": recipe.optim.max_grad_norm,
        "bf16": {"enabled": parallel.precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's CPU Adam must be compiled; torch's works on the CPU too
        "steps_per_print": 10**9,
        "checkpoint": {"load_universal": universal},
    }


def build_engine(recipe: Recipe, module: StageModule, *, universal: bool = False) -> Any:  # noqa: ANN401 - a deepspeed.DeepSpeedEngine
    """Freezes parameters by the stage, wraps the module and moves it to its device. The process group must exist.

    Under ZeRO-3 every parameter, frozen ones too, is then partitioned over the ranks. It is only complete inside the
    engine's forward and backward, and where it is gathered (`blip3o.train.deepspeed.gather`).

    Raises `ConfigError` if the engine does not apply the recipe's clipping, precision, ZeRO stage or offload.
    """
    import deepspeed
    import deepspeed.ops

    # Only inference uses this C++ extension, and DeepSpeed would compile it on every CPU machine.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=collective_backend(recipe.parallel.device))
    freeze(module.model, stage_of(recipe))
    if recipe.parallel.activation_checkpointing:
        checkpoint_activations(module.model)
    if recipe.parallel.compile:
        module.model.compile_layers()
    trainable = {name: p for name, p in module.model.named_parameters() if p.requires_grad}
    optim = recipe.optim
    # The loop sets the learning rate at each step. It starts at 0 because `deepspeed.initialize` may take a step with
    # zero gradients to create the optimizer's state, and with a learning rate that step would decay the weights.
    optimizer = torch.optim.AdamW(
        parameter_groups(optim, trainable), lr=0.0, betas=optim.betas, weight_decay=optim.weight_decay
    )
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
    return engine


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
    expected = {
        "clipping": recipe.optim.max_grad_norm,
        "bf16": parallel.precision == "bf16",
        "ZeRO stage": parallel.zero_stage,
        "accumulation": recipe.accumulation,
        "optimizer on the CPU": parallel.offload != "none",
        "parameters on the CPU": parallel.offload == "parameters",
        "parameters partitioned": parallel.zero_stage == 3,
    }
    actual = {
        "clipping": engine.gradient_clipping(),
        "bf16": engine.bfloat16_enabled(),
        "ZeRO stage": engine.zero_optimization_stage(),
        "accumulation": engine.gradient_accumulation_steps(),
        "optimizer on the CPU": _on_cpu(engine.zero_offload_optimizer()),
        "parameters on the CPU": _on_cpu(engine.zero_offload_param()),
        "parameters partitioned": all(is_partitioned(parameter) for parameter in engine.module.parameters()),
    }
    wrong = [f"{name} = {actual[name]} (recipe: {value})" for name, value in expected.items() if actual[name] != value]
    if wrong:
        raise ConfigError(f"DeepSpeed does not apply the recipe: it runs with {', '.join(wrong)}")


def _on_cpu(section: Any) -> bool:  # noqa: ANN401 - a section of DeepSpeed's configuration, or None
    return section is not None and section.device == "cpu"
