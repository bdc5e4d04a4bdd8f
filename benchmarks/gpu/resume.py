"""Verb `resume`: a run that was killed and resumed is the run that was not, on this device.

Part `engine` trains six steps at the 8b's widths and four layers, and again from its checkpoint after three in a new
process. Part `run` submits a whole run on Ray (data, workers, DeepSpeed, checkpoints), kills a worker of its twin, and
compares the exported weights. Everything is in a temporary folder.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks._runs import recipe_tree, write_initialised
from benchmarks.gpu.bench import Bench, Options
from benchmarks.gpu.models import stage_recipe
from benchmarks.gpu.parity import SHALLOW
from benchmarks.gpu.ray_session import joined
from benchmarks.gpu.step import process_group, run_loop, stage_module
from blip3o import log
from blip3o.bundle.layout import WEIGHTS
from blip3o.config.load import build_recipe
from blip3o.config.recipe import Recipe
from blip3o.device import release_memory
from blip3o.runs.checkpoints import committed_steps
from blip3o.runs.listing import read_attempts
from blip3o.train.checkpoint import state as checkpoint
from blip3o.train.deepspeed.engine import build_engine, prepare_process
from blip3o.train.deepspeed.release import release_engine
from blip3o.train.result import gather_result

STEPS, SAVED = 6, 3
# Cases of part `engine`: overrides of the recipe, and whether bits must be equal (else it is only printed).
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "default": ({}, False),
    "deterministic": ({"parallel.deterministic": True}, True),
}
START = {"world-encoder": "encoder", "world-understand": "backbone"}
WORKER = "RayTrainWorker"
EXPORTED = ("backbone", "queries", "dit")
PATIENCE_S, POLL_S = 300, 0.05


def engine(bench: Bench) -> None:
    """Six steps in one process, against three and three in two."""
    for name, (overrides, required) in CASES.items():
        if bench.late(name):
            return
        with tempfile.TemporaryDirectory() as folder:
            whole = _train(bench, folder, 0, STEPS, overrides)
            again = _train(bench, folder, 0, STEPS, overrides)
            resumed = _train(bench, folder, SAVED, STEPS, overrides)
        _compare(bench, f"{name}: the same run twice", whole, again, required=required)
        _compare(bench, f"{name}: resumed after {SAVED}", whole, resumed, required=required)
        bench.row(f"{name}: a step", 1000 * whole["seconds"], "ms")
        bench.note(f"{name}: losses", {"whole": whole["losses"], "resumed": resumed["losses"]})


def _compare(bench: Bench, what: str, one: dict[str, Any], other: dict[str, Any], *, required: bool) -> None:
    """Equality to the bit: required on the CPU, and on a GPU where the case asks for determinism."""
    same = one["sha256"] == other["sha256"]
    if required or bench.options.device == "cpu":
        bench.equal(what, same)
    else:
        bench.row(f"{what} (1: equal to the bit)", float(same), "", predicted=1.0)


def _train(bench: Bench, folder: str, start: int, stop: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Trains from step `start` to `stop`, in a process of its own unless the options say otherwise.

    Raises `subprocess.TimeoutExpired` if the process is not done when the time is up.
    """
    if bench.options.same_process:
        return train_engine(bench, folder, start, stop, overrides)
    task = {"folder": folder, "start": start, "stop": stop, "overrides": overrides}
    options = ["--device", bench.options.device, "--size", bench.options.size]
    command = [sys.executable, "-m", "benchmarks.gpu.resume", *options, json.dumps(task)]
    limit = max(bench.left(), 1.0)
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=limit)
    if done.returncode:
        raise RuntimeError(f"the child failed: {done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def train_engine(bench: Bench, folder: str, start: int, stop: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Some steps of stage generate; saves after `SAVED` of them, and begins from what is saved if `start` is not 0.

    Returns the sha256 of the trained weights, the losses, and the median seconds of a step.
    """
    changes = bench.pick(SHALLOW, {})
    size = {"optim.micro_batch_size": bench.pick(16, 2), "optim.micro_batches": bench.pick(2, 1), "optim.steps": STEPS}
    recipe = stage_recipe(bench, "8b", changes=changes, overrides=size | {"optim.lr": 1e-3} | overrides)
    prepare_process(recipe.parallel)  # before any work on a GPU
    with process_group(bench):
        module = stage_module(bench, recipe)
        made = build_engine(recipe, module)
        if start:
            checkpoint.load(made, folder, identity="gpu")
        records = run_loop(bench, recipe, made, module, range(start, max(start, SAVED)))
        if not start:
            checkpoint.save(made, folder, step=SAVED, identity="gpu", state={})
        records += run_loop(bench, recipe, made, module, range(SAVED, stop))
        weights, _ = gather_result(recipe, made, module.model, None, keep=True)  # the optimizer's own, in fp32
        release_engine(made)
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(weights[name].float().numpy().data)
    seconds = sorted(record.seconds for record in records)[len(records) // 2]
    release_memory(bench.device)
    return {"sha256": digest.hexdigest(), "losses": [record.loss for record in records], "seconds": seconds}


def run(bench: Bench) -> None:
    """A run on Ray undisturbed, and one whose worker is killed; exports of both have the same weights."""
    from blip3o.train.export import export

    with tempfile.TemporaryDirectory() as folder, joined(bench):
        _prepare(bench, folder)
        quiet, killed = (_recipe(bench, folder, name) for name in ("quiet", "killed"))
        expected = _fit(quiet)
        killer = Killer(killed)
        killer.start()
        began = time.time()
        found = _fit(killed)
        attempts = read_attempts(killed.run.storage, killed.run.name)
        bench.equal("sha256 of the weights: killed against undisturbed", found["sha256"] == expected["sha256"])
        bench.equal("a worker was killed, and the run began again", killer.time > 0 and len(attempts) > 1)
        digests = set()
        for made in (quiet, killed):
            bundle = export(made, [*START, made.run.name], f"{folder}/bundles/{made.run.name}", parts=EXPORTED)
            digests.add(hashlib.sha256(Path(bundle.uri, WEIGHTS).read_bytes()).hexdigest())
        bench.equal("sha256 of the exported weights", len(digests) == 1)
        if len(attempts) > 1:
            bench.row("from the kill to the next step", attempts[-1]["first_step"] - killer.time, "s")
        bench.row("the killed run in all", time.time() - began, "s")
        bench.note("attempts", attempts)


class Killer(threading.Thread):
    """Kills a run's training worker (SIGKILL) once the run has a checkpoint; `time` is when, 0 before."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(daemon=True)
        self._recipe, self.time = recipe, 0.0

    def run(self) -> None:
        """Waits for the checkpoint, and kills one worker of this process's Ray; none if there is no checkpoint."""
        deadline = time.monotonic() + PATIENCE_S
        while not committed_steps(self._recipe):
            if time.monotonic() > deadline:
                return
            time.sleep(POLL_S)
        for process in psutil.Process().children(recursive=True):
            if WORKER in _command(process):
                self.time = time.time()
                process.kill()
                return


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


def _recipe(bench: Bench, folder: str, name: str) -> Recipe:
    """Stage generate of a small model over scenes: on the bench's device, in bf16 on a GPU, with one worker."""
    gpu = bench.options.device == "gpu"
    return build_recipe(
        recipe_tree(
            folder,
            run={"name": name, "seed": 3},
            data={"root": f"{folder}/data", "template": {"system": ""}},
            model={"preset": bench.pick("tiny", "nano")},
            stage={"start_from": list(START)},
            optim={"steps": bench.pick(60, 12), "micro_batch_size": 8, "micro_batches": 2},
            parallel={
                "device": bench.options.device,
                "precision": "bf16" if gpu else "fp32",
                "cpus_per_data_actor": 0.5,
            },
            checkpoint={"every": bench.pick(10, 3), "max_failures": 3},
            log={"every": 1, "trackers": []},
        )
    )


def _prepare(bench: Bench, folder: str) -> None:
    """Scenes with their index and tokenizer, and untrained results of the earlier stages."""
    from blip3o.data.sets.scenes import build_scenes
    from blip3o.data.text.tokenizer_training import train_tokenizer
    from jobs.index import index

    made = _recipe(bench, folder, "world")
    build_scenes(f"{folder}/data/scenes", train=96, heldout=8, samples_per_shard=40)
    index(made)
    train_tokenizer(made)
    write_initialised(made, START, seed=3)


def _fit(recipe: Recipe) -> dict[str, Any]:
    from jobs.training.run import train

    return train(recipe)


PARTS: Mapping[str, Callable[[Bench], None]] = {"engine": engine, "run": run}


def main() -> None:
    """The child of part `engine`: prints what `train_engine` returns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device")
    parser.add_argument("--size")
    parser.add_argument("task", type=json.loads)
    chosen = parser.parse_args()
    log.configure()
    bench = Bench(Options(verb="resume", device=chosen.device, size=chosen.size, out=Path()))
    print(json.dumps(train_engine(bench, **chosen.task)))


if __name__ == "__main__":
    main()
