"""Disturbs the network of a run on three hosts, and compares its weights with those of a run on one.

    python -m benchmarks.scale.network [--only cut vanish] [--vanish 5] [--cut 10 120] [--steps 300]

The hosts are network namespaces (`cluster.netns`), so it needs Linux, root, and the extra `demo` (a real S3 server): a
head that decodes, and three nodes for one training worker each, so that one of them is spare. The runs are ones of
`jobs.train` with two workers: undisturbed; over slow links; with a store that is far away; with a link that is lost for
some seconds; and with hosts that vanish without a FIN. The report has the seconds from each event to the next step, and
whether the workers were started again. A node that Ray has declared dead is started again, as an autoscaler would.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import yaml

from benchmarks._measure import RESULTS, keep
from benchmarks.recovery.world import Submitted, attempts, prepare, store, tree
from blip3o import log, settings
from blip3o.config.load import build_recipe
from blip3o.config.recipe import Recipe
from blip3o.runs.checkpoints import committed_steps
from blip3o.runs.paths import final_uri
from blip3o.runs.results import read_final
from blip3o.runs.rows import rows_of
from cluster.netns.hosts import Hosts
from cluster.netns.nodes import RayNodes
from cluster.netns.proxy import LongWay

HEAD, WORKERS = "head", ("a", "b", "c")
PATIENCE_S, POLL_S = 600, 0.1
END_S = 60  # within which a node that was declared dead ends, once its link is back
SLOW_MBIT, FAR_S, LOSS = 20.0, 0.02, 0.01


@dataclass(frozen=True, kw_only=True)
class World:
    """The hosts, their Ray, the way to the store, and where runs are kept."""

    hosts: Hosts
    nodes: RayNodes
    way: LongWay
    base: str
    folder: Path


class Run:
    """A run whose driver is in the head's host."""

    def __init__(self, world: World, name: str, *, steps: int) -> None:
        described = tree(world.base, name, zero=1, steps=steps)
        described["parallel"] |= {"worker_labels": {"role": "train"}, "data_labels": {"role": "head"}}
        self.recipe: Recipe = build_recipe(described)
        file, self._log = world.folder / f"{name}.yaml", world.folder / f"{name}.log"
        file.write_text(yaml.safe_dump(described), encoding="utf-8")
        command = world.hosts.command(HEAD, [sys.executable, "-m", "jobs.train", str(file)])
        environment = settings.child_environment(world.nodes.environment)
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)

    def ended(self) -> bool:
        """Whether the driver has ended."""
        return self.process.poll() is not None

    def wait_for_steps(self) -> None:
        """Waits until the run has committed a checkpoint that it had not before."""
        before = max(committed_steps(self.recipe), default=0)
        self.wait(lambda: max(committed_steps(self.recipe), default=0) > before)

    def wait(self, check: Callable[[], bool]) -> None:
        """Waits until `check()` is true. Raises `RuntimeError` if the run ends before, or takes `PATIENCE_S`."""
        deadline = time.monotonic() + PATIENCE_S
        while not check():
            if self.ended() or time.monotonic() > deadline:
                raise RuntimeError(f"{self.recipe.run.name} does not continue: {self.log_tail()}")
            time.sleep(POLL_S)

    def log_tail(self) -> str:
        """The end of what the driver has said."""
        return self._log.read_text(encoding="utf-8")[-2000:]

    def next_step(self, since: float) -> float | None:
        """Seconds from the time `since` to the first step that ended after it, as far as is stored."""
        starts = [attempt["first_step"] for attempt in attempts(self.recipe)]
        with suppress(FileNotFoundError):
            starts += [row["time"] for row in rows_of(self.recipe)]
        later = [moment - since for moment in starts if moment > since]
        return min(later) if later else None

    def step_seconds(self) -> float:
        """Median seconds of a step."""
        return statistics.median(row["seconds"] for row in rows_of(self.recipe))

    def finish(self) -> str:
        """Waits for the end and returns the sha256 of the weights. Raises `RuntimeError` if the run failed."""
        if self.process.wait(PATIENCE_S) != 0:
            raise RuntimeError(f"{self.recipe.run.name} failed: {self.log_tail()}")
        return str(read_final(final_uri(self.recipe.run.storage, self.recipe.run.name))[1]["sha256"])


def training_hosts(hosts: Hosts) -> list[str]:
    """The hosts in which a training worker runs."""
    return [name for name in WORKERS if any(_trains(process) for process in hosts.processes(name))]


def _trains(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return False


def disturb(world: World, run: Run, how: Callable[[str], None], number: int) -> dict[str, Any]:
    """Does something to the host of one of the workers once the run has made steps; returns what came of it."""
    run.wait_for_steps()
    name = training_hosts(world.hosts)[number % 2]
    before, began = len(attempts(run.recipe)), time.time()
    how(name)
    undisturbed = began + 1.0  # a step that was under way may still end
    run.wait(lambda: run.next_step(undisturbed) is not None)
    restarted = len(attempts(run.recipe)) > before
    if restarted:
        after = attempts(run.recipe)[before]
        split = {"new workers": after["began"] - began, "step": after["first_step"] - began}
    else:
        split = {"step": (run.next_step(undisturbed) or 0.0) + 1.0}
    return {"host": name, "restarted": restarted, **{key: round(value, 1) for key, value in split.items()}}


def start_again(world: World, name: str) -> None:
    """Starts the node of a host again, with its link joined."""
    world.hosts.kill(name)
    world.nodes.stop(name)
    world.hosts.restore(name)
    world.nodes.start(name, num_cpus=1, labels="role=train")


def cut(world: World, run: Run, seconds: float, number: int) -> dict[str, Any]:
    """Cuts a worker's link for some seconds. Reports also whether its node ended once the link was back."""

    def for_a_while(name: str) -> None:
        world.hosts.cut(name)
        time.sleep(seconds)
        world.hosts.restore(name)

    found = disturb(world, run, for_a_while, number)
    if found["restarted"]:
        deadline = time.monotonic() + END_S
        while not world.nodes.ended(found["host"]) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        found["node ended"] = world.nodes.ended(found["host"])
        start_again(world, found["host"])
    return {"cut_s": seconds, **found}


def vanish(world: World, run: Run, number: int) -> dict[str, Any]:
    """Lets a worker's host vanish, and starts its node again once the run has gone on."""
    found = disturb(world, run, world.hosts.vanish, number)
    start_again(world, found["host"])
    return found


@contextmanager
def world(folder: Path, base: str) -> Iterator[World]:
    """Three hosts and a head with Ray on them, which reach the store of this process by a proxy."""
    upstream = urlsplit(settings.get("AWS_ENDPOINT_URL") or "")
    with Hosts((HEAD, *WORKERS)) as hosts, LongWay(hosts.address, (upstream.hostname or "", upstream.port or 0)) as way:
        endpoint = f"http://{hosts.address}:{way.port}"
        environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_ENDPOINT_URL_S3": endpoint}
        with RayNodes(hosts, head=HEAD, folder=folder, environment=environment) as nodes:
            nodes.start(HEAD, num_cpus=1, labels="role=head")
            for name in WORKERS:
                nodes.launch(name, num_cpus=1, labels="role=train")
            for name in WORKERS:
                nodes.wait_for(name)
            yield World(hosts=hosts, nodes=nodes, way=way, base=base, folder=folder)


def undisturbed(made: World, chosen: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """A run whose workers are on different hosts."""
    return Run(made, "undisturbed", steps=chosen.steps), {}


def slow(made: World, chosen: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """The same over slow links."""
    for name in WORKERS:
        made.hosts.limit(name, SLOW_MBIT)
    run = Run(made, "slow", steps=chosen.steps)
    run.finish()
    for name in WORKERS:
        made.hosts.limit(name, None)
    return run, {"mbit": SLOW_MBIT}


def far(made: World, chosen: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """The same with a store that is far away."""
    made.way.delay_s, made.way.loss = FAR_S, LOSS
    run = Run(made, "far", steps=chosen.steps)
    run.finish()
    made.way.delay_s = made.way.loss = 0.0
    return run, {"delay_s": FAR_S, "loss": LOSS}


def cuts(made: World, chosen: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """A run that loses links for some time."""
    run = Run(made, "cut", steps=chosen.steps)
    return run, {"events": [cut(made, run, seconds, number) for number, seconds in enumerate(chosen.cut)]}


def vanishes(made: World, chosen: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """A run during which hosts vanish."""
    run = Run(made, "vanish", steps=chosen.steps)
    events = [vanish(made, run, number) for number in range(chosen.vanish)]
    return run, {"events": events, "median_s": statistics.median(event["step"] for event in events)}


RUNS = {"undisturbed": undisturbed, "slow": slow, "far": far, "cut": cuts, "vanish": vanishes}


def measure(made: World, chosen: argparse.Namespace) -> dict[str, Any]:
    """The chosen runs, one after another, each compared with the run on one host."""
    one_host = Submitted(tree(made.base, "one-host", zero=1, steps=chosen.steps), made.folder)
    found: dict[str, Any] = {"sha256": one_host.finish(), "steps": chosen.steps, "runs": {}}
    for name in chosen.only:
        run, more = RUNS[name](made, chosen)
        equal = run.finish() == found["sha256"]
        found["runs"][name] = {"equal": equal, "step_s": round(run.step_seconds(), 3), **more}
        print(name, found["runs"][name], flush=True)
    return found


def main(argv: list[str] | None = None) -> int:
    """Runs all, prints the results and keeps them in a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--cut", type=float, nargs="*", default=[10.0, 120.0], help="seconds of each cut")
    parser.add_argument("--vanish", type=int, default=5, help="hosts that vanish, one after another")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="the runs that are wanted")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(argv)
    log.configure()
    settings.configure_ray()
    with tempfile.TemporaryDirectory(prefix="net-", dir="/tmp") as name, store("s3", Path(name)) as base:
        prepare(base)
        with world(Path(name), base) as made:
            result = measure(made, chosen)
    keep("-".join(["network", *(() if chosen.only == list(RUNS) else chosen.only)]), result, chosen.results)
    return 0 if all(run["equal"] for run in result["runs"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
