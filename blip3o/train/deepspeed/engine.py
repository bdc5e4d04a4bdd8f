"""The DeepSpeed engine of a stage, built from the recipe and from nothing else.

What the recipe says of clipping, precision, ZeRO and offload is asserted back from the engine, because an option that
silently does not act is how upstream's runs diverged. No extension of
DeepSpeed's is compiled: the optimizer is torch's AdamW.
"""

from typing import Any

import torch
from torch import nn

from blip3o.config.recipe import Recipe
from blip3o.device import collective_backend
from blip3o.errors import ConfigError
from blip3o.model.activation_checkpointing import checkpoint_activations
from blip3o.model.unified import UnifiedModel
from blip3o.train.deepspeed.gather import is_spread
from blip3o.train.objectives import StageModule
from blip3o.train.schedule import parameter_groups
from blip3o.train.stages import freeze, stage_of


def deepspeed_config(recipe: Recipe, *, universal: bool = False) -> dict[str, Any]:
    """DeepSpeed's configuration for this recipe; `universal` if a checkpoint of another number of ranks is loaded."""
    parallel = recipe.parallel
    zero: dict[str, Any] = {"stage": parallel.zero_stage, "overlap_comm": False}
    memory = {"device": "cpu", "pin_memory": parallel.device == "gpu"}
    if parallel.offload != "none":
        zero["offload_optimizer"] = memory
    if parallel.offload == "parameters":
        zero["offload_param"] = memory
    if parallel.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = parallel.param_persistence_threshold
    return {
        "train_micro_batch_size_per_gpu": recipe.optim.micro_batch_size,
        "gradient_accumulation_steps": recipe.accumulation,
        "gradient_clipping": recipe.optim.max_grad_norm,
        "bf16": {"enabled": parallel.precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its own must be compiled; torch's steps on the CPU too
        "steps_per_print": 10**9,
        "checkpoint": {"load_universal": universal},
    }


def build_engine(recipe: Recipe, module: StageModule, *, universal: bool = False) -> Any:  # noqa: ANN401 - a deepspeed.DeepSpeedEngine
    """Freezes what the stage freezes, wraps the rest and moves it to its device. The process group must exist.

    Under ZeRO-3 every parameter, frozen ones too, is from then on spread over the ranks: it is whole only inside the
    engine's forward and backward, and for who gathers it (`blip3o.train.deepspeed.gather`).

    Raises `ConfigError` if the engine did not take the recipe's clipping, precision, ZeRO stage or offload.
    """
    import deepspeed
    import deepspeed.ops

    # A C++ extension that only inference uses and that DeepSpeed would compile on every CPU machine.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=collective_backend(recipe.parallel.device))
    freeze(module.model, stage_of(recipe))
    if recipe.parallel.activation_checkpointing:
        checkpoint_activations(module.model)
    if recipe.parallel.compile:
        _compile_layers(module.model)
    trainable = {name: p for name, p in module.model.named_parameters() if p.requires_grad}
    optim = recipe.optim
    # The rate is the loop's to set at each step; until then none, or a step that DeepSpeed takes would decay weights.
    optimizer = torch.optim.AdamW(
        parameter_groups(optim, trainable), lr=0.0, betas=optim.betas, weight_decay=optim.weight_decay
    )
    if recipe.parallel.zero_stage == 3:
        _announce_unhooked(module)
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=list(trainable.values()),
        optimizer=optimizer,
        config=deepspeed_config(recipe, universal=universal),
    )
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        _keep_norm(engine)
    elif recipe.parallel.zero_stage == 0:
        # DeepSpeed has taken a step of zeros, to make the state, which would count as the first.
        engine.optimizer.optimizer.state.clear()
    _assert_taken(engine, recipe)
    return engine


def _compile_layers(model: UnifiedModel) -> None:
    """Of the DiT alone: a decoder layer of `transformers` knows its number, and would be compiled for each anew."""
    if model.generates:
        for layer in model.denoiser.blocks:
            layer.compile()


def _announce_unhooked(module: nn.Module) -> None:
    """Lets the whole's forward gather the parameters of modules that have none of their own.

    ZeRO-3 gathers a module's parameters when the module is called. The queries and the latents' scale are read by
    methods of modules that are never called.
    """
    from deepspeed.runtime.zero import register_external_parameter

    for part in module.modules():
        if type(part).forward is nn.Module.forward:
            for parameter in part.parameters(recurse=False):
                register_external_parameter(module, parameter)


def _keep_norm(engine: Any) -> None:  # noqa: ANN401 - as above
    """Has the engine tell the gradient's norm at ZeRO stage 0 in fp32, where DeepSpeed clips by it and forgets it."""

    def clip() -> None:
        parameters = [p for group in engine.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, engine.gradient_clipping())
        engine.optimizer._global_grad_norm = norm  # where the engine looks for it

    engine.clip_fp32_gradients = clip


def _assert_taken(engine: Any, recipe: Recipe) -> None:  # noqa: ANN401 - as above
    parallel = recipe.parallel
    asked = {
        "clipping": recipe.optim.max_grad_norm,
        "bf16": parallel.precision == "bf16",
        "ZeRO stage": parallel.zero_stage,
        "accumulation": recipe.accumulation,
        "optimizer on the CPU": parallel.offload != "none",
        "parameters on the CPU": parallel.offload == "parameters",
        "parameters spread": parallel.zero_stage == 3,
    }
    taken = {
        "clipping": engine.gradient_clipping(),
        "bf16": engine.bfloat16_enabled(),
        "ZeRO stage": engine.zero_optimization_stage(),
        "accumulation": engine.gradient_accumulation_steps(),
        "optimizer on the CPU": _on_cpu(engine.zero_offload_optimizer()),
        "parameters on the CPU": _on_cpu(engine.zero_offload_param()),
        "parameters spread": all(is_spread(parameter) for parameter in engine.module.parameters()),
    }
    wrong = [f"{name} = {taken[name]} (asked: {value})" for name, value in asked.items() if taken[name] != value]
    if wrong:
        raise ConfigError(f"DeepSpeed did not take the recipe: it runs with {', '.join(wrong)}")


def _on_cpu(section: Any) -> bool:  # noqa: ANN401 - a section of DeepSpeed's configuration, or None
    return section is not None and section.device == "cpu"
