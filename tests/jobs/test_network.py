"""A run whose workers are on hosts of their own equals one on a single host, whatever its network does (as root)."""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from blip3o import settings
from blip3o.runs.checkpoints import committed_steps
from blip3o.storage.s3_connection import connection
from cluster.netns import hosts
from cluster.netns.hosts import Hosts
from cluster.netns.nodes import RayNodes
from cluster.netns.proxy import LongWay
from jobs.commands.runs import read_run
from jobs.training.run import train
from tests.jobs import world

pytestmark = pytest.mark.skipif(bool(hosts.unsupported()), reason=str(hosts.unsupported()))

WORKERS = ("a", "b", "c")  # one of them is spare
CUT_S = 3.0
PATIENCE_S, POLL_S = 240, 0.05
ROLE = "role"


@pytest.fixture
def nodes(s3):
    """A head that decodes and three nodes for a training worker each, which reach the store of `s3` by a proxy."""
    upstream = urlsplit(connection().endpoint)
    with (
        tempfile.TemporaryDirectory(prefix="net-", dir="/tmp") as folder,
        Hosts(("head", *WORKERS)) as made,
        LongWay(made.address, (upstream.hostname, upstream.port), delay_s=0.005, loss=0.01) as way,
    ):
        endpoint = f"http://{made.address}:{way.port}"
        environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_ENDPOINT_URL_S3": endpoint}
        with RayNodes(made, head="head", folder=Path(folder), environment=environment) as nodes:
            nodes.start("head", num_cpus=1, labels=f"{ROLE}=head")
            for name in WORKERS:
                nodes.launch(name, num_cpus=1, labels=f"{ROLE}=train")
                made.limit(name, 20)
            for name in WORKERS:
                nodes.wait_for(name)
            yield nodes


def training_hosts(nodes):
    """The hosts in which a training worker runs."""
    return [
        name
        for name in WORKERS
        if any("RayTrainWorker" in " ".join(process.cmdline()) for process in nodes.hosts.processes(name))
    ]


def wait_for_checkpoint(made, run, *, after):
    """Waits until a step above `after` is committed, and returns the newest one; fails if the run ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while (newest := max(committed_steps(made), default=0)) <= after:
        assert run.poll() is None and time.monotonic() < deadline, (newest, run.poll())
        threading.Event().wait(POLL_S)
    return newest


def test_a_run_on_three_hosts_survives_a_cut_link_and_a_host_that_vanishes(nodes, base, tmp_path):
    """Its links are slow and its store is far. The cut costs it nothing but the time, the lost host a restart."""
    expected = train(world.recipe(base, evaluate=world.VALIDATED, checkpoint={"keep": 3}))  # that of test_train.py
    places = {"worker_labels": {ROLE: "train"}, "data_labels": {ROLE: "head"}}
    options = {"run": {"name": "apart"}, "parallel": places}
    made = world.recipe(base, **options)
    command = [sys.executable, "-m", "jobs.train", world.write_recipe(tmp_path / "recipe.yaml", base, **options)]
    environment = settings.child_environment(nodes.environment)
    with (tmp_path / "driver.log").open("wb") as out:
        run = subprocess.Popen(nodes.hosts.command("head", command), stdout=out, stderr=out, env=environment)
    step = wait_for_checkpoint(made, run, after=0)
    one, other = training_hosts(nodes)
    nodes.hosts.cut(one)
    threading.Event().wait(CUT_S)
    nodes.hosts.restore(one)
    wait_for_checkpoint(made, run, after=step)
    assert len(read_run(made.run.storage, "apart").attempts) == 1
    nodes.hosts.vanish(other)
    assert run.wait(PATIENCE_S) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    assert train(made)["sha256"] == expected["sha256"]
    first_steps = [found["step"] for found in read_run(made.run.storage, "apart").attempts]
    assert len(first_steps) == 2 and first_steps[0] == 1 < first_steps[1]
