"""The result of a stage: the trained weights, their moving average, and a summary of its metrics."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from blip3o.config.recipe import Recipe
from blip3o.model.unified import UnifiedModel
from blip3o.runs.paths import final_uri
from blip3o.runs.results import start_sha256, write_final
from blip3o.runs.rows import MFU, PADDING, operations, rows_of
from blip3o.train.deepspeed.gather import gather_parameters, trainable_parameters
from blip3o.train.deepspeed.masters import fp32_fragments, gather_fragments
from blip3o.train.ema import Ema
from blip3o.train.lora import base_weights, merge_adapters

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """A finished stage in numbers. `seconds` is the total time of its steps, without start-up.

    `data_wait_p50` and `data_wait_p95` are the median and the 95th percentile of the seconds that rank 0 waited for
    data in a step; `data_wait_fraction` is the share of all seconds. `checkpoint_stall` is the time that saving took,
    which is not part of `seconds`. `mfu` is the mean over that time, `padding` the share of all operations that was
    spent on padding; None if rows do not have them.
    """

    steps: int
    first_loss: float
    last_loss: float
    seconds: float
    samples_per_second: float
    data_wait_fraction: float
    data_wait_p50: float
    data_wait_p95: float
    checkpoint_stall: float
    mfu: float | None
    padding: float | None
    workers: int
    zero_stage: int


def summarize(recipe: Recipe, rows: list[dict[str, Any]], *, workers: int) -> StageSummary:
    """A run's rows as a summary. First and last loss are means over a tenth of the steps each (at least one step)."""
    losses = [row["loss"] for row in rows]
    tenth = max(len(losses) // 10, 1)
    seconds_of = [row["seconds"] for row in rows]
    seconds = sum(seconds_of)
    waits = [row["data_wait"] for row in rows]
    return StageSummary(
        steps=len(rows),
        first_loss=sum(losses[:tenth]) / tenth,
        last_loss=sum(losses[-tenth:]) / tenth,
        seconds=seconds,
        samples_per_second=len(rows) * recipe.optim.global_batch_size / seconds,
        data_wait_fraction=sum(waits) / seconds,
        data_wait_p50=float(np.percentile(waits, 50)),
        data_wait_p95=float(np.percentile(waits, 95)),
        checkpoint_stall=sum(row["checkpoint_stall"] for row in rows),
        mfu=_mean(rows, MFU, weights=seconds_of),
        padding=_mean(rows, PADDING, weights=[operations(row) for row in rows]),
        workers=workers,
        zero_stage=recipe.parallel.zero_stage,
    )


def _mean(rows: list[dict[str, Any]], column: str, *, weights: Sequence[float]) -> float | None:
    if not all(column in row for row in rows):
        return None
    return float(np.average([row[column] for row in rows], weights=weights))


def gather_result(
    recipe: Recipe,
    engine: Any,  # noqa: ANN401 - a DeepSpeedEngine
    model: UnifiedModel,
    ema: Ema | None,
    *,
    keep: bool,
) -> tuple[Tensors, Tensors | None]:
    """The trained weights and their average, both fp32, with adapters merged; empty if not `keep`.

    In bf16 the weights are the optimizer's, not the model's rounded ones. Every rank must call it.
    """
    lora, base = recipe.stage.lora, gather_parameters(base_weights(model), keep=keep)
    trained = trainable_parameters(model)
    if recipe.parallel.precision == "fp32":
        whole = gather_parameters(trained, keep=keep)
    else:
        whole = gather_fragments(fp32_fragments(engine, trained), trained, device=engine.device, keep=keep)
    return merge_adapters(whole, base, lora), merge_adapters(ema.gather(keep=keep), base, lora) if ema else None


def write_result(recipe: Recipe, weights: Tensors, averaged: Tensors | None, identity: str, *, workers: int) -> None:
    """Writes the trained weights, their average and the run's description, which marks the run as finished.

    `parts` of it are those of the model that the stage used, `starts` the sha256 of the weights of each run that it was
    trained on top of.
    """
    description = {
        "run": recipe.run.name,
        "stage": recipe.stage.name,
        "identity": identity,
        "parts": list(recipe.objective.parts),
        "starts": dict(zip(recipe.stage.start_from, start_sha256(recipe), strict=True)),
        "recipe": recipe.model_dump(mode="json"),
        "summary": asdict(summarize(recipe, rows_of(recipe), workers=workers)),
    }
    write_final(final_uri(recipe.run.storage, recipe.run.name), weights, description, averaged)
