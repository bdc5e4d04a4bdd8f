"""Kills a run at random moments, and compares its weights with those of the same run undisturbed.

    python -m benchmarks.recovery [--zero 1] [--kills 20]

Every kill is a SIGKILL of real processes: of one training worker, or, every fourth time, of the driver with all of its
workers, after which the run is submitted again. Moments are drawn after the first step of each attempt, up to two
commits and some seconds later; every third kill then waits for a checkpoint whose files are in the store but which Ray
has not committed. The report has the sha256 of both results, and the seconds from a kill to the next completed step,
split by phase. With `--freeze`, a worker is stopped (SIGSTOP) instead: its process lives and does nothing, which only
the watchdogs of the other workers detect; their reports are counted. Needs the extra `demo` (a real S3 server).
"""

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks._measure import RESULTS, keep
from benchmarks._runs import recipe_tree, write_initialised
from blip3o import log, settings, storage
from blip3o.config.load import build_recipe
from blip3o.config.recipe import Recipe
from blip3o.runs.checkpoints import committed_steps, present_steps
from blip3o.runs.listing import read_attempts
from blip3o.runs.paths import events_folder, final_uri
from blip3o.runs.results import read_final
from cluster.local_s3 import LocalS3

BUCKET, WORKER = "recovery", "RayTrainWorker"
SEED, SCENES = 3, 96
START = {"world-encoder": "encoder", "world-understand": "backbone"}
PATIENCE_S, POLL_S = 300, 0.05  # for the next event
RUN_S = 3600  # for a complete run, also on a busy machine
DRIVER_EVERY, UPLOAD_EVERY = 4, 3
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
    """A run in its own process, which can be submitted again."""

    def __init__(self, recipe: dict[str, Any], folder: Path) -> None:
        self.recipe: Recipe = build_recipe(recipe)
        self._file, self._log = folder / f"{self.recipe.run.name}.yaml", folder / f"{self.recipe.run.name}.log"
        self._file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        self.submit()

    def submit(self) -> None:
        """Starts the driver."""
        command = [sys.executable, "-m", "jobs.train", str(self._file)]
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)

    def workers(self) -> list[psutil.Process]:
        """The training workers that live."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in family if WORKER in _command(process)]

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


def kill_often(run: Submitted, kills: int, spread_s: float, *, freeze: bool) -> list[dict[str, Any]]:
    """Kills a run `kills` times, each within `spread_s` of the first step after the previous kill, or stops its
    workers, one at a time.

    Returns each kill with its time; ends early, with a printed line, if the run ends first.
    """
    draw = random.Random(SEED)
    done: list[dict[str, Any]] = []

    def resumed() -> bool:
        return len(run.attempts()) > (done[-1]["attempts"] if done else 0) or _ended(run)

    for number in range(kills):
        wait(resumed)
        # Some attempts commit checkpoints and are resumed from them, some are killed before their first.
        wait(_committed(run, len(committed_steps(run.recipe)) + draw.randrange(3)))
        time.sleep(draw.uniform(0, spread_s))
        if number % UPLOAD_EVERY == UPLOAD_EVERY - 1:
            wait(lambda: _uploading(run) or _ended(run), poll_s=0.005)
        uploading = _uploading(run)
        victims = [] if _ended(run) else run.workers()
        if not victims:
            print(f"the run ended after {number} kills: give it more steps")
            break
        with_driver = number % DRIVER_EVERY == DRIVER_EVERY - 1 and not freeze
        attempts = len(run.attempts())
        for process in [run.process, *victims] if with_driver else [draw.choice(victims)]:
            process.send_signal(signal.SIGSTOP if freeze else signal.SIGKILL)
        done.append({"time": time.time(), "driver": with_driver, "uploading": uploading, "attempts": attempts})
        print(f"kill {number + 1}: {'driver and workers' if with_driver else 'a worker'}", flush=True)
        if with_driver:
            run.process.wait()
            run.submit()
    return done


def _committed(run: Submitted, count: int) -> Callable[[], bool]:
    """A check whether a run has at least `count` checkpoints, or has ended."""
    return lambda: len(committed_steps(run.recipe)) >= count or _ended(run)


def _uploading(run: Submitted) -> bool:
    """Whether the store has files of a checkpoint that is not committed."""
    return max(present_steps(run.recipe), default=0) > max(committed_steps(run.recipe), default=0)


def _ended(run: Submitted) -> bool:
    return run.process.poll() is not None


def phases(kills: list[dict[str, Any]], attempts: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median seconds of each phase, from a kill to the first step after it, for each kind of kill.

    `noticed` ends when the new workers begin; `built` is the model and DeepSpeed's engine.
    """
    taken: dict[str, list[list[float]]] = {"worker": [], "driver": []}
    for kill in kills:
        after = [attempt for attempt in attempts if attempt["began"] > kill["time"]]
        if after:
            times = [after[0][name] for name in ("began", *PHASES[1:])]
            begins = [kill["time"], *times[:-1]]
            split = [end - begin for begin, end in zip(begins, times, strict=True)]
            taken["driver" if kill["driver"] else "worker"].append([*split, sum(split)])
    names = (*PHASES, "all")
    return {
        kind: {name: round(statistics.median(row[place] for row in rows), 2) for place, name in enumerate(names)}
        for kind, rows in taken.items()
        if rows
    }


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


def measure(base: str, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """The undisturbed run and the killed run, compared."""
    prepare(base)
    quiet = Submitted(tree(base, f"quiet-zero{chosen.zero}", zero=chosen.zero, steps=chosen.steps), folder)
    expected = quiet.finish()
    print(f"undisturbed: {expected}", flush=True)
    run = Submitted(tree(base, f"killed-zero{chosen.zero}", zero=chosen.zero, steps=chosen.steps), folder)
    kills = kill_often(run, chosen.kills, chosen.spread, freeze=chosen.freeze)
    found = run.finish()
    return {
        "equal": found == expected,
        "sha256": [expected, found],
        "kills": len(kills),
        "of the driver": sum(kill["driver"] for kill in kills),
        "during an upload": sum(kill["uploading"] for kill in kills),
        "frozen": chosen.freeze,
        "reported hanging": [event["message"].partition("\n")[0] for event in hangs(run.recipe)],
        "steps": chosen.steps,
        "store": chosen.store,
        "seconds": phases(kills, run.attempts()),
    }


def main(argv: list[str] | None = None) -> int:
    """Runs both, prints the result as a line of JSON and keeps it in a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--zero", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--freeze", action="store_true", help="stop workers instead of killing them")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--spread", type=float, default=4.0, help="a kill falls within this many seconds after a step")
    parser.add_argument("--store", choices=("s3", "folder"), default="s3", help="where the runs are kept")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(argv)
    log.configure()
    settings.configure_ray()
    with tempfile.TemporaryDirectory() as folder, store(chosen.store, Path(folder)) as base:
        result = measure(base, Path(folder), chosen)
    keep(f"recovery-zero{chosen.zero}{'-freeze' * chosen.freeze}", result, chosen.results)
    return 0 if result["equal"] and result["kills"] == chosen.kills else 1


if __name__ == "__main__":
    sys.exit(main())
