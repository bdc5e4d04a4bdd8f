"""`blip3o preflight --on-cluster` over real node processes: an idle cluster, and one with faults."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from blip3o import settings
from cluster.ports import LOOPBACK, free_ports
from tests.jobs import world

PATIENCE = 30  # less than the time after which Ray gives a stopped node up


@pytest.fixture(scope="module")
def cluster(s3):
    """A head without CPUs, as one that waits for its autoscaler."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield cluster
    cluster.shutdown()


def preflight(cluster, *arguments):
    environment = settings.child_environment({"RAY_ADDRESS": cluster.address})
    command = [sys.executable, "-m", "jobs.preflight", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_an_idle_cluster_is_no_error_of_the_other_checks(cluster, s3, tmp_path):
    file = world.write_recipe(tmp_path / "recipe.yaml", s3)
    done = preflight(cluster, file)
    assert "not known resources: no node with CPUs is up: give the size" in done.stdout
    assert "Traceback" not in done.stderr


def test_every_node_is_probed_and_each_fault_is_named(cluster, s3, tmp_path):
    file = world.write_recipe(tmp_path / "recipe.yaml", s3)
    idle = preflight(cluster, file, "--on-cluster")
    assert idle.returncode == 1
    assert "none of 1 nodes has CPUs: only the head is up" in idle.stderr
    assert re.search(r"^\S+ \(\w{8}\)  head +0 .* MB/s", idle.stdout, re.MULTILINE)  # which is probed all the same

    [closed] = free_ports(1)
    cut_off = {"AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{closed}", "BLIP3O_STORE_PATIENCE_S": "1"}
    cut = cluster.add_node(num_cpus=1, env_vars=cut_off | {"AWS_ENDPOINT_URL_S3": cut_off["AWS_ENDPOINT_URL"]})
    sound = cluster.add_node(num_cpus=1)
    stopped = cluster.add_node(num_cpus=1)
    raylet = stopped.all_processes["raylet"][0].process.pid
    os.kill(raylet, signal.SIGSTOP)
    try:
        done = preflight(cluster, file, "--on-cluster", "--json", "-", "--patience", str(PATIENCE))
    finally:
        os.kill(raylet, signal.SIGCONT)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    nodes = {node["address"]: node for node in report["nodes"]}
    blockers = {it["node"]: it["what"] for it in report["findings"] if it["level"] == "blocker"}
    [at_cut, at_sound, at_stopped] = [
        next(address for address in nodes if node.node_id[:8] in address) for node in (cut, sound, stopped)
    ]
    assert blockers.keys() == {at_cut, at_stopped}
    assert "the store does not answer" in blockers[at_cut]
    assert blockers[at_stopped] == f"did not answer within {PATIENCE} s"
    measured = nodes[at_sound]
    assert measured["store"]["read"] > 0 and measured["store"]["latency"] > 0
    assert abs(measured["clock"]["ahead"]) <= measured["clock"]["error"] + 0.01  # all nodes have this machine's clock
    assert measured["facts"]["memory"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert "2 blocker(s) on 4 node(s)" in done.stderr
