"""What the measurements of recovery share: recipe, inputs and store, and a run in a process that can be killed."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks._runs import recipe_tree, write_initialised
from blip3o import settings, storage
from blip3o.config.load import build_recipe
from blip3o.config.recipe import Recipe
from blip3o.runs.listing import read_attempts
from blip3o.runs.paths import events_folder, final_uri
from blip3o.runs.results import read_final
from cluster.local_s3 import LocalS3

BUCKET, WORKER = "recovery", "RayTrainWorker"
SEED, SCENES = 3, 96
START = {"world-encoder": "encoder", "world-understand": "backbone"}
PATIENCE_S, POLL_S = 300, 0.05  # for the next event
RUN_S = 3600  # for a complete run, also on a busy machine
HANG_S = 60  # in one phase, after which a worker counts as hung; building takes half of that on two cores
PHASES = ("noticed", "built", "restored", "first_batch", "first_step")


def tree(base: str, name: str, *, zero: int, steps: int, workers: int | dict[str, int] = 2) -> dict[str, Any]:
    """A nano recipe for `generate`, on indexed scenes and weights below `base`."""
    return recipe_tree(
        base,
        run={"name": name, "seed": SEED},
        data={"root": f"{base}/data", "template": {"system": ""}},
        model={"preset": "nano"},
        stage={"start_from": list(START)},
        optim={"steps": steps, "warmup_steps": 2, "micro_batch_size": 8, "micro_batches": 2},
        parallel={"workers": workers, "zero_stage": zero, "cpus_per_data_actor": 0.5},
        checkpoint={"every": 5, "max_failures": 1000, "keep": 3, "preemption_check_every": 2},
        log={"every": 1},
        guard={"hang_seconds": HANG_S},
    )


def prepare(base: str) -> None:
    """Scenes, their index and tokenizer, and untrained results of the earlier stages."""
    from blip3o.data.sets.scenes import build_scenes
    from blip3o.data.text.tokenizer_training import train_tokenizer
    from jobs.common import join_ray, leave_ray
    from jobs.index import index

    made = build_recipe(tree(base, "world", zero=1, steps=10))
    build_scenes(f"{base}/data/scenes", train=SCENES, heldout=8, samples_per_shard=40)
    join_ray()
    index(made)
    leave_ray()
    train_tokenizer(made)
    write_initialised(made, START, seed=SEED)


class Submitted:
    """A run in its own process, which can be submitted again.

    It has a Ray of its own, or joins the cluster at `address`, whose workers descend from the processes `raylets()`.
    """

    def __init__(
        self,
        recipe: dict[str, Any],
        folder: Path,
        *,
        address: str | None = None,
        raylets: Callable[[], Sequence[int]] = tuple,
    ) -> None:
        self.recipe: Recipe = build_recipe(recipe)
        self._environment: Mapping[str, str] = {"RAY_ADDRESS": address} if address else {}
        self._raylets = raylets
        self._file, self._log = folder / f"{self.recipe.run.name}.yaml", folder / f"{self.recipe.run.name}.log"
        self._file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        self.submit()

    def submit(self) -> None:
        """Starts the driver."""
        command = [sys.executable, "-m", "jobs.train", str(self._file)]
        with self._log.open("ab") as out:
            environment = settings.child_environment(self._environment)
            self.process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, env=environment)

    def workers(self) -> list[psutil.Process]:
        """The training workers that live."""
        return [worker for pid in (self.process.pid, *self._raylets()) for worker in workers_below(pid)]

    def attempts(self) -> list[dict[str, Any]]:
        """The attempts that reached a step, in order."""
        return attempts(self.recipe)

    def finish(self) -> str:
        """Waits for the end and returns the sha256 of the weights. Raises `RuntimeError` if the run failed."""
        if self.process.wait(RUN_S) != 0:
            raise RuntimeError(f"{self.recipe.run.name} failed: {self._log.read_text(encoding='utf-8')[-2000:]}")
        return str(read_final(final_uri(self.recipe.run.storage, self.recipe.run.name))[1]["sha256"])


def attempts(recipe: Recipe) -> list[dict[str, Any]]:
    """The attempts of a run that reached a step, in order."""
    return read_attempts(recipe.run.storage, recipe.run.name)


def hangs(recipe: Recipe) -> list[dict[str, Any]]:
    """The reports of the watchdogs of a run's workers."""
    files = storage.list_files(events_folder(recipe.run.storage, recipe.run.name), suffix=".json")
    return [json.loads(storage.read_bytes(file.uri)) for file in files if "-hang-" in file.uri]


def workers_below(pid: int) -> list[psutil.Process]:
    """The training workers among the descendants of a process; none if it has ended."""
    try:
        family = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in family if WORKER in _command(process)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


def wait(check: Callable[[], bool], *, poll_s: float = POLL_S) -> None:
    """Waits until `check()` is true. Raises `TimeoutError` after `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if check():
            return
        time.sleep(poll_s)
    raise TimeoutError(f"nothing in {PATIENCE_S} s")


@contextmanager
def store(kind: str, folder: Path) -> Iterator[str]:
    """The URI below which everything is stored: a fresh bucket in a real S3 server, or a folder."""
    if kind == "folder":
        yield str(folder / "store")
        return
    with LocalS3(data_dir=folder / "s3") as server:
        settings.override(server.environment)
        server.create_bucket(BUCKET)
        yield f"s3://{BUCKET}"
