"""The DeepSpeed engine of a stage, built from the recipe and from nothing else.

What the recipe says of clipping, precision and ZeRO is asserted back from the engine, because an option that silently
does not act is how upstream's runs diverged. Nothing is compiled: the optimizer is torch's AdamW.
"""

from typing import Any

import torch

from blip3o.config.recipe import Recipe
from blip3o.device import collective_backend
from blip3o.errors import ConfigError
from blip3o.model.recompute import recompute_activations
from blip3o.train.objectives import StageModule
from blip3o.train.stages import freeze, stage_of


def deepspeed_config(recipe: Recipe, *, universal: bool = False) -> dict[str, Any]:
    """DeepSpeed's configuration for this recipe; `universal` if a checkpoint of another number of ranks is loaded."""
    return {
        "train_micro_batch_size_per_gpu": recipe.optim.micro_batch,
        "gradient_accumulation_steps": recipe.accumulation,
        "gradient_clipping": recipe.optim.clip,
        "bf16": {"enabled": recipe.parallel.precision == "bf16"},
        "zero_optimization": {"stage": recipe.parallel.zero_stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "checkpoint": {"load_universal": universal},
    }


def build_engine(recipe: Recipe, module: StageModule, *, universal: bool = False) -> Any:  # noqa: ANN401 - a deepspeed.DeepSpeedEngine
    """Freezes what the stage freezes and wraps the rest. The process group must exist.

    Raises `ConfigError` if the engine did not take the recipe's clipping, precision or ZeRO stage.
    """
    import deepspeed
    import deepspeed.ops

    # A C++ extension that only inference uses and that DeepSpeed would compile on every CPU machine.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=collective_backend(recipe.parallel.device))
    freeze(module.model, stage_of(recipe))
    if recipe.parallel.recompute:
        recompute_activations(module.model)
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=recipe.optim.lr, betas=recipe.optim.betas, weight_decay=recipe.optim.weight_decay
    )
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=trainable,
        optimizer=optimizer,
        config=deepspeed_config(recipe, universal=universal),
    )
    _assert_taken(engine, recipe)
    return engine


def _assert_taken(engine: Any, recipe: Recipe) -> None:  # noqa: ANN401 - as above
    asked = (recipe.optim.clip, recipe.parallel.precision == "bf16", recipe.parallel.zero_stage, recipe.accumulation)
    taken = (
        engine.gradient_clipping(),
        engine.bfloat16_enabled(),
        engine.zero_optimization_stage(),
        engine.gradient_accumulation_steps(),
    )
    if asked != taken:
        raise ConfigError(
            f"DeepSpeed runs with clipping, bf16, ZeRO stage, accumulation = {taken}, the recipe says {asked}"
        )
