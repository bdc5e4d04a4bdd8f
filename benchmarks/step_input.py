"""How long a training step waits for its micro-batch: prepared a step ahead in a thread, against made when it starts.

    python -m benchmarks.step_input [--batch 16] [--prompt 224] [--draws 1] [--busy 150] [--rounds 20]

Both make the same input of the 8b preset's generate stage, with cached features: tensors of the stream's arrays, the
draws of the loss, and its counts. Before each, the caller sleeps for `busy` milliseconds: it stands for the time that a
GPU takes for a step while the CPU waits for it, since there is no GPU here. Reading from shards is not included.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks._measure import keep, options
from blip3o.config.load import build_recipe
from blip3o.config.recipe import Recipe
from blip3o.train.ahead import OneAhead
from blip3o.train.loop import to_batch
from blip3o.train.objectives import Batch, Objective
from blip3o.train.objectives.base import build_objective

CPU = torch.device("cpu")
VOCABULARY = 32_000

Input = tuple[Batch, dict[str, int]]  # a micro-batch and its counts


def _recipe(arguments: argparse.Namespace) -> Recipe:
    return build_recipe(
        {
            "run": {"name": "bench", "storage": "bench"},
            "data": {
                "root": "bench",
                "sources": [{"name": "bench", "shards": "*.tar"}],
                "tokenizer": "tokenizer.json",
                "max_length": 2 * arguments.prompt + 512,  # the stream pads, the loop cuts
                "features": "cache",
            },
            "model": {"preset": "8b"},
            "stage": {"name": "generate", "noise_draws": arguments.draws},
            "optim": {"steps": 1000, "lr": 1e-4, "micro_batch_size": arguments.batch, "micro_batches": 1},
            "parallel": {"device": "cpu", "precision": "fp32"},
            "checkpoint": {"every": 1000},
        }
    )


def _arrays(arguments: argparse.Namespace, recipe: Recipe) -> dict[str, np.ndarray]:
    """A micro-batch as the stream yields it, with features as the bits of bfloat16."""
    generator, rows, shape = np.random.default_rng(0), arguments.batch, recipe.model.latent_shape
    ids = np.zeros((rows, recipe.data.max_length), np.int32)
    ids[:, : arguments.prompt] = generator.integers(1, VOCABULARY, (rows, arguments.prompt))
    features = generator.integers(0, 2**14, (rows, *shape), np.uint16)  # finite ones
    return {"input_ids": ids, "draw_key": np.arange(rows), "features": features, "micro_batch": np.zeros(rows, int)}


def _prepare(objective: Objective, arrays: dict[str, np.ndarray], step: int) -> Input:
    """The micro-batch of any step, as the loop prepares it, and its counts."""
    batch = objective.prepare(to_batch({**arrays, "draw_key": arrays["draw_key"] + step}, pad_id=0, device=CPU))
    return batch, objective.counts(batch)


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark; the last line is its result. `ratio` is other / ours, in seconds that a step waits."""
    sizes = {"batch": 16, "prompt": 224, "draws": 1, "busy": 150, "rounds": 20}
    arguments, folder = options(__doc__ or "", sizes, argv)
    recipe = _recipe(arguments)
    prepare = partial(_prepare, build_objective(recipe.objective, recipe, pad_id=0), _arrays(arguments, recipe))
    waits: tuple[list[float], list[float]] = ([], [])
    with OneAhead(prepare, range(arguments.rounds + 1)) as ahead:
        takes: tuple[Callable[[int], Input], ...] = (ahead.take, prepare)
        for step in range(arguments.rounds + 1):
            made = [
                _timed(partial(take, step), seconds, arguments.busy) for take, seconds in zip(takes, waits, strict=True)
            ]
            if not _same(*made):
                raise SystemExit("the two ways make different inputs: nothing to compare")
    mine, theirs = (statistics.median(seconds[1:]) for seconds in waits)
    result = {"ratio": round(theirs / mine, 3), "ours": round(mine, 7), "other": round(theirs, 7), "unit": "s"}
    keep("step_input", {**result, "n": arguments.rounds, **vars(arguments)}, folder)


def _timed(take: Callable[[], Input], seconds: list[float], busy: int) -> Input:
    time.sleep(busy / 1000)
    began = time.perf_counter()
    made = take()
    seconds.append(time.perf_counter() - began)
    return made


def _same(ours: Input, other: Input) -> bool:
    (batch, counts), (others, other_counts) = ours, other
    equal = all(torch.equal(batch[name], others[name]) for name in others)
    return batch.keys() == others.keys() and counts == other_counts and equal


if __name__ == "__main__":
    main()
