"""What `blip3o budget` predicts against what is measured: peak memory at every ZeRO stage, and counted FLOPs.

    python -m benchmarks.budget

Two processes train a narrow model on the CPU by the real engine. torch's profiler follows what its allocator has given
out, through all steps but not while the engine is built. FLOPs are those of torch's counter on the meta device.
"""

import argparse
import gc
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile

from benchmarks._measure import RESULTS, keep
from blip3o import settings
from blip3o.budget.activations import build_for_counting, measure_activations
from blip3o.budget.memory import DeviceMemory, device_memory
from blip3o.budget.micro_batch import IMAGE_TOKEN, PAD, make_micro_batch
from blip3o.budget.work import sample_flops
from blip3o.config.load import load_recipe
from blip3o.config.recipe import Recipe
from blip3o.model.describe import META
from blip3o.model.flops.counted import measure
from blip3o.model.unified import initialize
from blip3o.train.callbacks import Callback, StepRecord
from blip3o.train.deepspeed.engine import build_engine
from blip3o.train.deepspeed.gather import trainable_parameters
from blip3o.train.deepspeed.release import release_engine
from blip3o.train.ema import Ema
from blip3o.train.loop import Loop
from blip3o.train.objectives import build_stage_module, to_device
from blip3o.train.preflight.memory import count_parameters
from blip3o.train.stages import freeze, stage_of

WORLD = 2
MIB = 2**20
COUNTED = ("tiny:generate", "tiny:encoder", "blip3o-4b:pretrain", "blip3o-8b:pretrain", "qwen3-siglip2:generate")
SMALL = (
    "parallel.workers=2",
    "parallel.device=cpu",
    "optim.steps=2",
    "optim.warmup_steps=0",
    "optim.micro_batch_size=4",
    "optim.micro_batches=4",
    "optim.ema_decay=0.99",
    "optim.muon=[]",
    "model.dit.layers=2",
    "stage.noise_draws=3",
)
SPREAD = ("parallel.reduce_bucket_size=300000",)  # smaller than the model, as a real one's is


def small_recipe(*, zero_stage: int, recompute: bool, precision: str) -> Recipe:
    """The laptop's `generate` stage at a ZeRO stage, with two micro-batches a worker and step."""
    keys = [
        *SMALL,
        f"parallel.zero_stage={zero_stage}",
        f"parallel.activation_checkpointing={str(recompute).lower()}",
        f"parallel.precision={precision}",
        *(SPREAD if zero_stage else ()),
        *(("parallel.param_persistence_threshold=0",) if zero_stage == 3 else ()),
    ]
    return load_recipe("tiny:generate", keys)


def predicted(recipe: Recipe) -> DeviceMemory:
    """What the budget says."""
    kept = measure_activations(recipe, recompute=recipe.parallel.activation_checkpointing)
    return device_memory(recipe, count_parameters(recipe), kept, workers=WORLD)


class _Collects(Callback):
    """Frees what only cycles refer to, as time would: else it depends on the collector's counters."""

    def after_step(self, done: int, record: StepRecord) -> None:
        gc.collect()


def measured_peak(recipe: Recipe) -> int:
    """Most bytes that torch's allocator held while rank 0 trained; 0 on others. All ranks of the group call it."""
    gc.collect()
    rank = dist.get_rank()
    followed = profile(activities=[ProfilerActivity.CPU], profile_memory=True) if rank == 0 else nullcontext()
    with followed as profiled:
        module = build_stage_module(recipe, image_token_id=IMAGE_TOKEN, pad_id=PAD)
        initialize(module.model, 0)
        freeze(module.model, stage_of(recipe))
        engine = build_engine(recipe, module)
        ema = Ema(engine, trainable_parameters(module.model), decay=0.99)
        began = time.time_ns()
        Loop(
            recipe=recipe,
            engine=engine,
            module=module,
            batches=_micro_batches(recipe, rank),
            device=torch.device("cpu"),
            rank=rank,
            world=WORLD,
            pad_id=PAD,
            callbacks=[ema, _Collects()],
        ).run(0)
    found = _peak(profiled, began) if rank == 0 else 0
    release_engine(engine)
    return found


def _micro_batches(recipe: Recipe, rank: int) -> Iterator[dict[str, np.ndarray]]:
    columns = {name: tensor.numpy() for name, tensor in make_micro_batch(recipe).items()}
    for number in range(rank, recipe.optim.steps * recipe.optim.micro_batches, WORLD):
        yield columns | {"micro_batch": np.full(recipe.optim.micro_batch_size, number)}


def _peak(profiled: Any, began: int) -> int:  # noqa: ANN401 - a torch.profiler.profile
    """The most live bytes after a time, above those before the first event."""
    found = []
    pending = list(profiled.profiler.kineto_results.experimental_event_tree())
    while pending:
        event = pending.pop()
        pending += event.children
        fields = event.extra_fields
        if getattr(fields, "total_allocated", None) is not None:
            found.append((event.start_time_ns, fields.alloc_size, fields.total_allocated))
    found.sort()
    before = found[0][2] - found[0][1]
    return int(max(total for when, _, total in found if when > began) - before)


def cases(precisions: Sequence[str] = ("bf16", "fp32")) -> list[dict[str, Any]]:
    """Every ZeRO stage with stored and with recomputed activations."""
    return [
        {"zero_stage": stage, "recompute": recompute, "precision": precision}
        for precision in precisions
        for stage in (0, 1, 2, 3)
        for recompute in (False, True)
    ]


def measured_peaks(wanted: list[dict[str, Any]]) -> list[int]:
    """The peak of rank 0 in each case, by `WORLD` processes of one group on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "peaks.json")
        mp.spawn(_rank, (_free_port(), wanted, str(file)), nprocs=WORLD)
        found: list[int] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rank(rank: int, port: int, wanted: list[dict[str, Any]], file: str) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    settings.override({name: str(value) for name, value in names.items()})
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    found = [measured_peak(small_recipe(**case)) for case in wanted]
    if rank == 0:
        Path(file).write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def counted_flops(recipe: Recipe) -> float:
    """FLOPs of a sample's training step by torch's counter."""
    module = build_for_counting(recipe, recompute=False)
    batch = to_device(module.prepare(make_micro_batch(recipe)), META)

    def step() -> None:
        torch.stack(list(module(batch).values())).sum().backward()

    return measure(step) / recipe.optim.micro_batch_size


def flops_ratios(names: Sequence[str]) -> dict[str, float]:
    """The budget's FLOPs over counted ones, by recipe."""
    recipes = {name: load_recipe(name) for name in names}
    return {name: sum(sample_flops(it).values()) / counted_flops(it) for name, it in recipes.items()}


def command_seconds(recipe: str) -> float:
    """Seconds of `blip3o budget` in a process of its own."""
    began = time.perf_counter()
    words = ["-m", "jobs.cli", "budget", recipe, "--gpu", "h100", "--count", "32", "--sweep", "--load", "1"]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - began


def main(argv: list[str] | None = None) -> None:
    """Measures everything, prints a table, and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the result")
    options = parser.parse_args(argv)
    wanted = cases()
    rows = []
    print("ZeRO  dtype  activations  measured MiB  predicted MiB  ratio")
    for case, peak in zip(wanted, measured_peaks(wanted), strict=True):
        said = predicted(small_recipe(**case)).peak
        rows.append({**case, "measured": peak, "predicted": round(said), "ratio": round(said / peak, 3)})
        kind = "recomputed" if case["recompute"] else "stored"
        print(
            f"{case['zero_stage']:>4}  {case['precision']:5}  {kind:11}{peak / MIB:>14.2f}{said / MIB:>15.2f}"
            f"{said / peak:>7.3f}"
        )
    flops = {name: round(ratio, 4) for name, ratio in flops_ratios(COUNTED).items()}
    print("FLOPs over counted ones:", flops)
    seconds = {name: round(command_seconds(name), 1) for name in ("blip3o-4b", "blip3o-8b")}
    print("seconds of the command:", seconds)
    worst = max((row["ratio"] for row in rows), key=lambda ratio: abs(ratio - 1))
    keep("budget", {"memory": rows, "worst": worst, "flops": flops, "seconds": seconds}, options.results)


if __name__ == "__main__":
    main()
