"""What happens on an autoscaling cluster: a job makes it grow, one of its nodes is killed, and it shrinks again.

Each scenario waits for what the autoscaler says and for what the job has stored, never for an amount of time, and
returns what it saw. Limits are for a machine with much else to do.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from blip3o import settings
from blip3o.config.recipe import Recipe
from blip3o.errors import ServiceError
from blip3o.runs.checkpoints import committed_steps
from blip3o.runs.listing import read_attempts
from blip3o.runs.paths import final_uri
from blip3o.runs.results import read_final
from cluster.fake.cluster import FakeCluster, kill_all
from cluster.fake.status import Event, Sample, StatusWatch

TRAINER = "trainer"
PATIENCE_S = 240.0  # for one thing to happen
_POLL_S = 0.1


@dataclass(kw_only=True)
class Scene:
    """A running cluster, what its autoscaler says, and what has happened on it. Files of jobs go to `folder`."""

    cluster: FakeCluster
    watch: StatusWatch
    folder: Path
    on_event: Callable[[Event], None] = lambda _: None
    events: list[Event] = field(default_factory=list)

    def mark(self, message: str, at: float | None = None) -> None:
        """Keeps an event of now, or of another Unix time."""
        event = Event(at or time.time(), message)
        self.events.append(event)
        self.on_event(event)

    def until(self, holds: Callable[[Sample], bool], what: str) -> Sample:
        """The first sample of the autoscaler's status, from the current one on, for which `holds` is true."""
        return self.watch.wait(holds, what, timeout_s=PATIENCE_S)

    def nodes(self, group: str) -> list[str]:
        """Ids of a group's nodes now."""
        return self.watch.samples[-1].of(group)


class Job:
    """`python -m jobs.VERB …` as a process that has joined the cluster: a context manager that ends it."""

    def __init__(self, scene: Scene, *arguments: str) -> None:
        """Nothing is started yet. `arguments` are the verb and those of its command line."""
        self._scene = scene
        self._arguments = arguments
        self._log = scene.folder / f"{arguments[0]}-{len(scene.events)}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Starts it."""
        verb, *rest = self._arguments
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"jobs.{verb}", *rest],
                env=settings.child_environment(self._scene.cluster.client_environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us first
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kills it, if it still runs."""
        if self._process is None:
            return
        if self._process.poll() is None:
            driver = psutil.Process(self._process.pid)
            kill_all([driver, *driver.children(recursive=True)])
        self._process.wait()

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Returns once `holds()` is true. Raises `ServiceError` if the job ends before, or it takes too long."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            if self._ended() or time.monotonic() > deadline:
                raise ServiceError(f"{what}: not before the job ended or {PATIENCE_S:.0f} s: {self.tail()}")
            time.sleep(_POLL_S)

    def finish(self) -> None:
        """Waits for its end. Raises `ServiceError` with the end of its log if it fails, or takes too long."""
        deadline = time.monotonic() + PATIENCE_S
        while not self._ended():
            if time.monotonic() > deadline:
                raise ServiceError(f"{' '.join(self._arguments)} runs for more than {PATIENCE_S:.0f} s: {self.tail()}")
            time.sleep(_POLL_S)
        if self._process and self._process.returncode:
            raise ServiceError(f"{' '.join(self._arguments)} failed: {self.tail()}")

    def tail(self) -> str:
        """The end of its log."""
        return " ".join(self._log.read_text(encoding="utf-8", errors="replace").split())[-900:]

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None


def open_scene(
    stack: ExitStack,
    folder: Path,
    *,
    idle_seconds: float,
    on_event: Callable[[Event], None] = lambda _: None,
    on_change: Callable[[Sample], None] = lambda _: None,
) -> Scene:
    """Starts a cluster that lasts as long as `stack`, and returns it once its autoscaler reports no workers."""
    cluster = stack.enter_context(FakeCluster(idle_seconds=idle_seconds))
    watch = stack.enter_context(StatusWatch(cluster.address, cluster.groups, on_change=on_change))
    scene = Scene(cluster=cluster, watch=watch, folder=folder, on_event=on_event)
    scene.until(lambda sample: not sample.nodes, "a cluster without workers")
    scene.mark("the head runs, and no worker")
    return scene


def result_sha256(recipe: Recipe) -> str:
    """The sha256 of a finished run's weights."""
    return str(read_final(final_uri(recipe.run.storage, recipe.run.name))[1]["sha256"])


def attempts(recipe: Recipe) -> list[dict[str, Any]]:
    """The starts of a run's workers that reached a step, in order."""
    return read_attempts(recipe.run.storage, recipe.run.name)


def starts(of_run: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """The first step (from 0) and the number of workers of each attempt."""
    return [(attempt["step"] - 1, attempt["workers"]) for attempt in of_run]


def train_while_a_node_is_killed(scene: Scene, file: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """Trains on two trainers, one of which is killed after a checkpoint; returns the attempts."""
    with Job(scene, "train", str(file)) as job:
        scene.mark(f"train '{recipe.run.name}': two workers, each on a trainer of its own")
        scene.until(lambda sample: len(sample.of(TRAINER)) == 2, "two trainers")
        job.until(lambda: bool(committed_steps(recipe)), "a checkpoint")
        scene.mark("first step", attempts(recipe)[0]["first_step"])
        victim = scene.nodes(TRAINER)[-1]
        scene.cluster.kill(victim)
        scene.mark("a trainer is killed")
        scene.until(lambda sample: victim not in sample.nodes, "the loss of the node is known")
        scene.until(lambda sample: len(sample.of(TRAINER)) == 2, "a node in place of the one that was killed")
        job.until(lambda: len(attempts(recipe)) > 1, "a step on the new node")
        scene.mark("first step after the kill", attempts(recipe)[1]["first_step"])
        job.finish()
    scene.mark(f"'{recipe.run.name}' is trained")
    return attempts(recipe)


def wait_until_empty(scene: Scene) -> None:
    """Returns once the autoscaler has removed every worker node."""
    scene.until(lambda sample: not sample.nodes, "no nodes after the idle time")
    scene.mark("no worker is left")
