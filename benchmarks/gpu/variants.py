"""The cases of verb `step` as data: a preset, a micro-batch size, overrides of the recipe. A new case is a new row.

The recipe is that of `benchmarks.gpu.models.stage_recipe`: stage generate, one worker, bf16, ZeRO 1, stored features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu import predictions


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One case. `goal` is a share of the peak on real tokens; with `profile`, a micro-batch's kernels are listed."""

    preset: str
    micro_batch: int
    overrides: Mapping[str, Any] = field(default_factory=dict)
    goal: float | None = None
    profile: bool = False


EAGER: dict[str, Any] = {"parallel.compile": False}
COMPILED: dict[str, Any] = {"parallel.compile": True}

# In the order in which they run: a call whose time is up has the important ones.
VARIANTS: dict[str, Variant] = {
    "8b-16": Variant(preset="8b", micro_batch=16, overrides=EAGER, profile=True),
    "8b-16-compile": Variant(preset="8b", micro_batch=16, overrides=COMPILED, goal=predictions.GOAL_8B, profile=True),
    "4b-16": Variant(preset="4b", micro_batch=16, overrides=EAGER, profile=True),
    "4b-16-compile": Variant(preset="4b", micro_batch=16, overrides=COMPILED, goal=predictions.GOAL_4B),
    "8b-64-compile": Variant(preset="8b", micro_batch=64, overrides=COMPILED, goal=predictions.GOAL_8B),
    "8b-16-online": Variant(preset="8b", micro_batch=16, overrides=EAGER | {"data.features": "online"}),
    "8b-16-recompute": Variant(
        preset="8b", micro_batch=16, overrides=EAGER | {"parallel.activation_checkpointing": True}
    ),
    "8b-16-zero2": Variant(preset="8b", micro_batch=16, overrides=EAGER | {"parallel.zero_stage": 2}),
    "8b-16-fp32-sums": Variant(
        preset="8b",
        micro_batch=16,
        overrides=COMPILED | {"parallel.zero_stage": 2, "parallel.gradient_accumulation_dtype": "fp32"},
    ),
    "8b-64": Variant(preset="8b", micro_batch=64, overrides=EAGER),
    "4b-64-compile": Variant(preset="4b", micro_batch=64, overrides=COMPILED, goal=predictions.GOAL_4B),
    "4b-64": Variant(preset="4b", micro_batch=64, overrides=EAGER),
}
