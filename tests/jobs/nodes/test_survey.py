"""`blip3o preflight --on-cluster` on a real head without CPUs, as one whose autoscaler has started nothing yet."""

import re
import subprocess
import sys

import pytest

from blip3o import settings
from tests.jobs import world


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


def test_an_idle_cluster_is_a_blocker_and_its_head_is_probed(cluster, s3, tmp_path):
    file = world.write_recipe(tmp_path / "recipe.yaml", s3)
    idle = preflight(cluster, file, "--on-cluster")
    assert idle.returncode == 1
    assert "none of 1 nodes has CPUs: only the head is up" in idle.stderr
    assert re.search(r"^\S+ \(\w{8}\)  head +0 .* MB/s", idle.stdout, re.MULTILINE)  # which is probed all the same
