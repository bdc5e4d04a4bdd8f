"""The runs with and without kills, compared."""

import argparse
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._measure import RESULTS, keep
from benchmarks.recovery import __doc__ as summary
from benchmarks.recovery.world import PHASES, SEED, Submitted, hangs, prepare, store, tree, wait
from blip3o import log, settings
from blip3o.runs.checkpoints import committed_steps, present_steps

DRIVER_EVERY, UPLOAD_EVERY = 4, 3


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
    parser = argparse.ArgumentParser(description=(summary or "").partition("\n")[0])
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
