"""An autoscaling cluster of this machine: the right groups grow and shrink, and runs outlive the loss of a node.

What is asserted of nodes is the autoscaler's own status. One cluster serves all tests, in their order.
"""

from contextlib import ExitStack

import psutil
import pytest

from blip3o.errors import ServiceError
from cluster.fake.status import decisions
from jobs.autoscaling import scenarios
from jobs.autoscaling.world import PLACED
from jobs.training.run import train
from tests.jobs import world

OPTIM = {"steps": 300}


@pytest.fixture(scope="module")
def quiet(base):
    """An undisturbed run, on the Ray that all tests share."""
    made = world.recipe(base, run={"name": "undisturbed"}, optim=OPTIM, checkpoint={"every": 100})
    train(made)
    return made


@pytest.fixture(scope="module")
def scene(s3, tmp_path_factory):
    with ExitStack() as stack:
        yield scenarios.open_scene(stack, tmp_path_factory.mktemp("jobs"), idle_seconds=10)


def write(scene, base, **sections):
    """A recipe whose parts run on the groups that they are for, and its file."""
    sections = {"optim": OPTIM, "parallel": PLACED, "checkpoint": {"every": 20}} | sections
    file = scene.folder / f"{sections['run']['name']}.yaml"
    world.write_recipe(file, base, **sections)
    return file, world.recipe(base, **sections)


def test_a_job_gets_its_nodes_and_one_that_is_killed_is_replaced_with_equal_weights(quiet, scene, base):
    file, made = write(scene, base, run={"name": "killed"})
    first, second = scenarios.train_while_a_node_is_killed(scene, file, made)
    assert (first["workers"], second["workers"]) == (2, 2)
    assert 1 < second["step"] <= OPTIM["steps"]  # from a checkpoint
    assert scenarios.result_sha256(made) == scenarios.result_sha256(quiet)
    seen = [sample.counts() for sample in scene.watch.samples]
    assert seen[0] == {}
    assert {group for counts in seen for group in counts} == {"trainer", "preprocess"}
    assert len({node for sample in scene.watch.samples for node in sample.of("trainer")}) == 3


def _changes(scene, group):
    """The numbers of a group's nodes, in turn."""
    counts = [len(sample.of(group)) for sample in scene.watch.samples]
    return [count for last, count in zip([None, *counts], counts, strict=False) if count != last]


def test_nothing_is_left_in_the_end(scene):
    scenarios.wait_until_empty(scene)
    groups = scene.cluster.groups
    assert all(_changes(scene, group)[0] == _changes(scene, group)[-1] == 0 for group in groups)
    said = [event.message for event in decisions(scene.cluster.temp_dir)]
    assert "Adding 2 node(s) of type trainer." in said
    for group in ("trainer", "preprocess"):
        assert any(f"of type {group} (idle)" in message for message in said)
    with pytest.raises(ServiceError, match="no raylet of node"):
        scene.cluster.kill("0" * 56)
    temp_dir = scene.cluster.temp_dir
    scene.cluster.stop()
    assert not [
        each for each in psutil.process_iter(["cmdline"]) if f"{temp_dir}/" in " ".join(each.info["cmdline"] or ())
    ]
