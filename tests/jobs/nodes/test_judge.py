"""Each fault of a node is found, named by the node, and given a fix; a sound cluster has no findings."""

from dataclasses import replace

import pytest

from blip3o.device import GpuHealth, parse_gpus
from blip3o.train.preflight.memory import GIB
from jobs.nodes.judge import Clock, Node, judge
from jobs.nodes.probe import Facts, StoreFacts

FACTS = Facts(
    versions={"python": "3.11.9", "torch": "2.8.0"},
    memory=64 * GIB,
    disk_free=200 * GIB,
    shared_memory=16 * GIB,
    file_limit=65536,
)
SOUND = Node(
    address="10.0.0.1",
    group="train",
    cpus=8,
    object_store=8 * GIB,
    facts=FACTS,
    store=StoreFacts(read=400e6, latency=0.02),
    clock=Clock(ahead=0.01, error=0.001),
)
GPU = GpuHealth(index=3, name="H100", driver="570.1", ecc_errors=0, throttled=[])


def found(*nodes):
    return [(it.level, it.node, it.what) for it in judge(nodes, memory=4 * GIB, patience=30)]


def with_facts(**changed):
    return {"facts": replace(FACTS, **changed)}


def test_a_sound_cluster_has_no_findings():
    head = replace(SOUND, address="10.0.0.9", cpus=0, facts=replace(FACTS, memory=2 * GIB))  # nothing trains there
    assert found(head, *[SOUND] * 3) == []


@pytest.mark.parametrize(
    ("changed", "level", "what"),
    [
        ({"facts": None, "store": None, "clock": None}, "blocker", "did not answer within 30 s"),
        ({"store": None}, "blocker", "the store did not answer within 30 s"),
        ({"store": StoreFacts(error="s3://b: access denied")}, "blocker", "s3://b: access denied"),
        ({"store": StoreFacts(read=100e6)}, "warning", "reads 100 MB/s from the store, the median node 400"),
        (with_facts(versions=FACTS.versions | {"torch": "2.7.1"}), "blocker", "torch is 2.7.1, on 2 of 3 nodes 2.8.0"),
        (with_facts(memory=3 * GIB), "blocker", "3.0 GiB of memory, the run needs 4.0 to start"),
        (with_facts(disk_free=GIB), "blocker", "1.0 GiB free in the temporary folder"),
        (with_facts(disk_free=10 * GIB), "warning", "10.0 GiB free in the temporary folder"),
        (with_facts(file_limit=1024), "blocker", "1024 open files a process"),
        (with_facts(file_limit=8192), "warning", "8192 open files a process"),
        (with_facts(shared_memory=GIB), "warning", "/dev/shm has 1.0 GiB, the object store 8.0"),
        ({"clock": Clock(ahead=-90, error=0.5)}, "blocker", "its clock is -90.00 s from the driver's, within 0.50 s"),
        ({"clock": Clock(ahead=3, error=0.5)}, "warning", "its clock is +3.00 s from the driver's, within 0.50 s"),
        (
            with_facts(gpus=[replace(GPU, ecc_errors=2)]),
            "blocker",
            "GPU 3 (H100) has 2 uncorrected ECC errors",
        ),
        (
            with_facts(gpus=[replace(GPU, throttled=["hw_slowdown"])]),
            "warning",
            "GPU 3 (H100) is slowed down by: hw_slowdown",
        ),
    ],
)
def test_one_fault_is_one_finding_on_its_node(changed, level, what):
    odd = replace(SOUND, address="10.0.0.7", **changed)
    assert found(SOUND, odd, SOUND) == [(level, "10.0.0.7", what)]


def test_images_of_two_groups_may_have_their_own_torch_but_not_their_own_python():
    other = replace(SOUND, group="data", **with_facts(versions=FACTS.versions | {"torch": "2.8.0+cpu"}))
    assert found(SOUND, SOUND, other) == []
    odd = replace(SOUND, group="data", address="10.0.0.7", **with_facts(versions=FACTS.versions | {"python": "3.12.1"}))
    assert found(SOUND, SOUND, odd) == [("blocker", "10.0.0.7", "python is 3.12.1, on 2 of 3 nodes 3.11.9")]


def test_a_clock_that_could_be_right_is_not_accused():
    assert found(replace(SOUND, clock=Clock(ahead=3, error=2.5))) == []


def test_blockers_come_first():
    slow, lost = replace(SOUND, store=StoreFacts(read=1e6)), replace(SOUND, facts=None)
    assert [level for level, *_ in found(SOUND, slow, SOUND, lost)] == ["blocker", "warning"]


def test_gpus_are_read_from_what_nvidia_smi_is_documented_to_print():
    """The lines are written by hand after its documentation, not recorded from a GPU."""
    text = (
        "0, NVIDIA H100 80GB HBM3, 570.86.15, 0, Not Active, Not Active, Not Active\n"
        "1, NVIDIA H100 80GB HBM3, 570.86.15, 7, Active, Not Active, Active\n"
        "2, NVIDIA GeForce RTX 3060, 570.86.15, [N/A], Not Active, Not Active, Not Active\n"
    )
    assert [(gpu.index, gpu.ecc_errors, gpu.throttled) for gpu in parse_gpus(text)] == [
        (0, 0, []),
        (1, 7, ["hw_slowdown", "sw_thermal_slowdown"]),
        (2, 0, []),
    ]
    assert parse_gpus("Failed to initialize NVML: Driver/library version mismatch\n") == []
