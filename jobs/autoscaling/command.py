"""`blip3o demo-cluster`: jobs on an autoscaling cluster whose nodes are processes of this machine, and what they do."""

import json
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from blip3o import log, settings
from blip3o.config.recipe import Recipe
from blip3o.errors import ServiceError
from cluster.fake.status import Event, Sample, as_json
from cluster.local_s3 import LocalS3
from jobs.autoscaling import scenarios, world
from jobs.autoscaling.picture import draw, require_matplotlib
from jobs.commands.demo_console import clock, say
from jobs.common import join_ray, leave_ray

FOLDER = Path("runs/demo-cluster")
LOG = "demo.log"
BUCKET = "fleet"
BASE = f"s3://{BUCKET}"
IDLE_S = 10.0


@dataclass
class Timeline:
    """Prints what happens, and what the autoscaler reports of it, as it comes."""

    began: float

    def on_event(self, event: Event) -> None:
        """What the demo does, or sees of a job."""
        say(f"{clock(event.time - self.began)}  {event.message}", style="bold")

    def on_change(self, sample: Sample) -> None:
        """What the autoscaler reports."""
        nodes, starting = _counted(sample.counts()), _counted(sample.starting)
        say(f"{clock(sample.time - self.began)}      nodes: {nodes}; starting: {starting}")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{group} {count}" for group, count in sorted(counts.items())) or "none"


def run_demo(out: Path) -> dict[str, Any]:
    """Runs every scenario on one cluster, prints the timeline, and writes `nodes.png` and `timeline.json` to a folder.

    Returns what was compared. Raises `ServiceError` if something does not happen, or if weights are not those of the
    undisturbed run.
    """
    require_matplotlib()
    out.mkdir(parents=True, exist_ok=True)
    log.divert(out / LOG, shown=())
    quiet = world.recipe(BASE, "encoder", "undisturbed")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="blip3o-fleet-")))
        store = stack.enter_context(LocalS3(data_dir=folder / "store"))
        settings.override(store.environment)
        store.create_bucket(BUCKET)
        _train_undisturbed(quiet)
        timeline = Timeline(time.time())
        scene = scenarios.open_scene(
            stack, out, idle_seconds=IDLE_S, on_event=timeline.on_event, on_change=timeline.on_change
        )
        compared = _run_scenarios(scene, folder, quiet)
        report = {**compared, **as_json(scene.watch.samples, scene.events, scene.cluster.temp_dir)}
        groups = scene.cluster.groups
    (out / "timeline.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    draw(report, groups, out / "nodes.png")
    return compared


def _train_undisturbed(quiet: Recipe) -> None:
    """The data, and the run that others are compared with, on a Ray of its own."""
    from jobs.training.run import train

    say("data, and an undisturbed run to compare with")
    try:
        join_ray()
        with redirect_stdout(sys.stderr):  # what indexing prints goes to the log, too
            world.prepare(BASE, quiet)
        train(quiet)
    finally:
        leave_ray()


def _run_scenarios(scene: scenarios.Scene, folder: Path, quiet: Recipe) -> dict[str, Any]:
    """Every scenario, one after the other. Raises `ServiceError` if a run is not the undisturbed one."""
    killed = world.recipe(BASE, "encoder", "killed", parallel=world.PLACED)
    kill = scenarios.train_while_a_node_is_killed(scene, world.write(killed, folder), killed)
    scenarios.wait_until_empty(scene)
    compared = {
        "weights equal after a kill": scenarios.result_sha256(killed) == scenarios.result_sha256(quiet),
        "first steps and workers after the kill": scenarios.starts(kill),
    }
    if not compared["weights equal after a kill"]:
        raise ServiceError("the run whose node was killed ended with other weights than the undisturbed one")
    return compared


def command(
    *, out: Annotated[Path, typer.Option(help="Folder of the picture, the timeline and the log.")] = FOLDER
) -> None:
    """Run jobs on an autoscaling cluster whose nodes are processes of this machine, and kill a node.

    Takes some minutes on two cores. Ray's own autoscaler decides; the timeline is its own status.
    """
    compared = run_demo(out)
    for what, found in compared.items():
        say(f"  {what}: {found}")
    say(f"  picture  {out / 'nodes.png'}")
    say(f"  timeline {out / 'timeline.json'}")
    say(f"  log      {out / LOG}")
