"""The overhead of Ray Train, stream and DeepSpeed over a bare loop with its batch in memory, and of checkpoints.

    python -m benchmarks.scaling [--batch 96] [--steps 24] [--every 8] [--scenes 512]

Ours is a fit of one worker as `jobs.train` runs it, on the generate stage of the tiny preset, from shards on the local
disk; a step's time is the full time from one step to the next, waiting for data and bookkeeping included. The other
way is the same module with torch's AdamW and clipping in this process, before and after the fit. Both start
with the same loss. `overhead` is the additional share of time that ours takes (goal: 0.05 at a step of 1 s); `stall` is
the seconds for which a checkpoint blocks the loop, and their share of the steps between two checkpoints (goal: 0.01).
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch

from benchmarks._measure import keep, options
from benchmarks._runs import recipe_tree, write_initialised
from blip3o import storage
from blip3o.config.load import build_recipe
from blip3o.config.recipe import Recipe
from blip3o.data.batches import build_micro_batches
from blip3o.data.inputs import StageInputs
from blip3o.data.sets.scenes import build_scenes
from blip3o.data.shards.locations import tokenizer_uri
from blip3o.data.text.tokenizer import PAD, ChatTokenizer
from blip3o.data.text.tokenizer_training import train_tokenizer
from blip3o.runs.rows import rows_of
from blip3o.train.initial_weights import prepare_module
from blip3o.train.loop import to_batch
from blip3o.train.stages import stage_of
from jobs.common import join_ray, leave_ray
from jobs.index import index
from jobs.training.run import train

TOLERANCE = 1e-5  # of the first loss, relative: kernels see other memory alignments
WARM_UP = 3  # first steps, which are not counted
START = {"bench-encoder": "encoder", "bench-backbone": "backbone"}


def _recipe(root: str, arguments: argparse.Namespace) -> Recipe:
    return build_recipe(
        recipe_tree(
            root,
            stage={"start_from": list(START)},
            optim={"steps": arguments.steps, "micro_batch_size": arguments.batch},
            parallel={"cpus_per_data_actor": 0.5},
            checkpoint={"every": arguments.every, "max_failures": 0},
        )
    )


def _prepare(root: str, recipe: Recipe, scenes: int) -> ChatTokenizer:
    """Indexed scenes, a tokenizer, and untrained frozen parts."""
    build_scenes(f"{root}/scenes", train=scenes, heldout=1, samples_per_shard=64)
    index(recipe)
    train_tokenizer(recipe)
    write_initialised(recipe, START)
    return ChatTokenizer.from_bytes(storage.read_bytes(tokenizer_uri(recipe.data)))


def _bare(recipe: Recipe, tokenizer: ChatTokenizer, steps: int) -> tuple[float, list[float]]:
    """The first step's loss, and the seconds of each step after the warm-up, on the first micro-batch."""
    module = prepare_module(recipe, tokenizer)
    arrays = build_micro_batches(StageInputs(recipe), stage_of(recipe).task)(0)
    batch = to_batch(arrays, pad_id=tokenizer.ids[PAD], device=torch.device("cpu"))
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.optim.lr, betas=recipe.optim.betas, weight_decay=0)
    losses, seconds = [], []
    for _ in range(WARM_UP + steps):
        began = time.perf_counter()
        optimizer.zero_grad()
        loss = module(batch)["flow"] / module.counts(batch)["flow"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.optim.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    return losses[0], seconds[WARM_UP:]


def _figures(rows: list[dict[str, Any]], every: int) -> dict[str, Any]:
    """From the fit's rows: seconds of each counted step, stall included, and the stalls of checkpoints.

    A row's `checkpoint_stall` lies between the end of the previous step and the start of its own.
    """
    after = [row["checkpoint_stall"] for row in rows if row["step"] and row["step"] % every == 0]
    counted = [row for row in rows if row["step"] >= WARM_UP and row["step"] % every]
    seconds = [row["seconds"] + row["checkpoint_stall"] for row in counted]
    stall = statistics.median(after)
    return {
        "seconds": seconds,
        "data_wait": statistics.median(row["data_wait"] for row in counted),
        "stall_seconds": round(stall, 4),
        "stall_share": round(stall / (every * statistics.median(seconds)), 4),
        "checkpoints": len(after),
    }


def main(argv: list[str] | None = None) -> None:
    """Measures and reports. Ends with an error if the two ways start with different losses."""
    sizes = {"batch": 96, "steps": 24, "every": 8, "scenes": 512}
    arguments, folder = options(__doc__.splitlines()[0], sizes, argv)
    with tempfile.TemporaryDirectory() as root:
        recipe = _recipe(root, arguments)
        join_ray()
        try:
            tokenizer = _prepare(root, recipe, arguments.scenes)
            expected, before = _bare(recipe, tokenizer, arguments.steps // 2)
            train(recipe)
            rows = rows_of(recipe)
        finally:
            leave_ray()
        _, after = _bare(recipe, tokenizer, arguments.steps // 2)
    if abs(rows[0]["loss"] - expected) > TOLERANCE * expected:
        raise SystemExit(
            f"the fit starts with loss {rows[0]['loss']}, the bare loop with {expected}: nothing to compare"
        )
    found = _figures(rows, arguments.every)
    ours, other = statistics.median(found.pop("seconds")), statistics.median(before + after)
    result = {
        "ratio": round(other / ours, 3),
        "overhead": round(ours / other - 1, 4),
        "ours": round(ours, 4),
        "other": round(other, 4),
        "unit": "s",
        "n": arguments.steps,
        **found,
        "sizes": vars(arguments),
    }
    keep("scaling", result, folder)


if __name__ == "__main__":
    main()
