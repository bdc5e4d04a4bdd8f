"""DeepSpeed's configuration of a stage, and its optimizer's options, from the recipe only."""

from typing import Any

from blip3o.config.recipe import Recipe
from blip3o.config.training import ParallelConfig

# Gradient elements of a bucket whose reduction overlaps with the backward pass: small enough that the first one is
# ready early. DeepSpeed's default is for reductions that nothing hides.
OVERLAPPED_BUCKET = 100_000_000


def deepspeed_config(recipe: Recipe, *, universal: bool = False) -> dict[str, Any]:
    """DeepSpeed's configuration for this recipe; `universal` to load a checkpoint of another number of ranks."""
    parallel = recipe.parallel
    config = {
        "train_micro_batch_size_per_gpu": recipe.optim.micro_batch_size,
        "gradient_accumulation_steps": recipe.accumulation,
        "gradient_clipping": recipe.optim.max_grad_norm,
        # DeepSpeed has another optimizer for ZeRO 1 with sums in fp32. This makes it free each gradient once summed.
        "bf16": {"enabled": parallel.precision == "bf16", "immediate_grad_update": parallel.zero_stage == 1},
        "zero_optimization": _zero_config(parallel),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's CPU Adam must be compiled; torch's works on the CPU too
        "steps_per_print": 10**9,
        # It would wait for the device before every pass, so that no pass could be queued behind another.
        "timers": {"throughput": {"enabled": False}},
        "checkpoint": {"load_universal": universal},
    }
    if parallel.zero_stage > 0:
        config["data_types"] = {"grad_accum_dtype": parallel.accumulation_dtype}
        config["communication_data_type"] = parallel.reduction_dtype
    return config


def _zero_config(parallel: ParallelConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": parallel.zero_stage, "overlap_comm": parallel.overlaps}
    bucket = parallel.reduce_bucket_size or (OVERLAPPED_BUCKET if parallel.overlaps else None)
    if bucket is not None:
        zero["reduce_bucket_size"] = bucket
    cpu_memory = {"device": "cpu", "pin_memory": parallel.device == "gpu"}
    if parallel.offload != "none":
        zero["offload_optimizer"] = cpu_memory
    if parallel.offload == "parameters":
        zero["offload_param"] = cpu_memory
    if parallel.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = parallel.param_persistence_threshold
    return zero


def adamw_options(parallel: ParallelConfig) -> dict[str, Any]:
    """Options of torch's AdamW: one fused kernel where the optimizer's state is on a GPU."""
    return {"fused": True} if parallel.device == "gpu" and parallel.offload == "none" else {}


def describe_engine(recipe: Recipe) -> str:
    """How a stage is trained, with every default filled in, on one line."""
    parallel = recipe.parallel
    parts = [
        f"ZeRO {parallel.zero_stage} on {parallel.device} in {parallel.precision}",
        f"gradients summed in {parallel.accumulation_dtype} over micro-batches and in {parallel.reduction_dtype} over "
        "workers",
        "reduced during the backward pass" if parallel.overlaps else "reduced after it",
        "layers compiled" if parallel.compiles else "nothing compiled",
    ]
    if adamw_options(parallel):
        parts.append("AdamW fused")
    if recipe.optim.muon:
        parts.append(f"Muon for {' '.join(recipe.optim.muon)}")
    if parallel.deterministic:
        parts.append("deterministic algorithms only")
    return ", ".join(parts)
