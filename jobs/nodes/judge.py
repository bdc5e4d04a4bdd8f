"""What is wrong with a cluster, from the facts of its nodes. Nothing here measures anything."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from blip3o.train.preflight.checks import SKEW_SECONDS
from blip3o.train.preflight.memory import GIB
from jobs.nodes.probe import Facts, StoreFacts

Level = Literal["blocker", "warning"]

DISK_BLOCKER, DISK_WARNING = 2 * GIB, 20 * GIB
FILES_BLOCKER, FILES_WARNING = 4096, 65536
CLOCK_WARNING = 1.0  # seconds; logs of several nodes can no longer be put in order
EVERYWHERE = ("python", "ray", "blip3o")  # pickled objects pass between all nodes
SLOW = 0.5  # of the median read speed


@dataclass(frozen=True, kw_only=True)
class Clock:
    """How far a node's clock is ahead of the driver's, in seconds, and how far off that number may be."""

    ahead: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node as Ray lists it, and what it measured; a part is None if it did not answer in time."""

    address: str
    group: str
    cpus: float
    object_store: float
    facts: Facts | None = None
    store: StoreFacts | None = None
    clock: Clock | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong: where, with its value, and what to do. A blocker would stop or spoil a run."""

    level: Level
    node: str
    what: str
    fix: str


def judge(nodes: Sequence[Node], *, memory: int, patience: float) -> list[Finding]:
    """The findings on all nodes, blockers first.

    Args:
        nodes: All nodes that Ray lists as alive.
        memory: Host memory that a node with CPUs must have for the run to start, bytes.
        patience: Seconds that the nodes had to answer.
    """
    found = [*_idle(nodes), *_version_findings(nodes), *_speed_findings(nodes)]
    for node in nodes:
        found += _of_node(node, memory, patience)
    return sorted(found, key=lambda finding: finding.level)


def _idle(nodes: Sequence[Node]) -> Iterator[Finding]:
    if not any(node.cpus for node in nodes):
        what = f"none of {len(nodes)} nodes has CPUs: only the head is up, and there is nothing to train on"
        fix = "start nodes first: `blip3o preflight RECIPE --all-reduce N` makes the autoscaler add them for N workers"
        yield Finding(level="blocker", node="cluster", what=what, fix=fix)


def _version_findings(nodes: Sequence[Node]) -> Iterator[Finding]:
    """The nodes whose versions are not those of most others: some in the cluster, others in a group.

    Images for CPUs and for GPUs may have different builds of torch and of what comes with it.
    """
    yield from _odd_versions(nodes, EVERYWHERE)
    for group in dict.fromkeys(node.group for node in nodes):
        members = [node for node in nodes if node.group == group]
        names = dict.fromkeys(name for node in members if node.facts for name in node.facts.versions)
        yield from _odd_versions(members, [name for name in names if name not in EVERYWHERE])


def _odd_versions(nodes: Sequence[Node], names: Sequence[str]) -> Iterator[Finding]:
    answered = [(node, node.facts.versions) for node in nodes if node.facts]
    for name in names:
        counted = Counter(versions.get(name, "missing") for _, versions in answered)
        if not counted:
            return
        usual = counted.most_common(1)[0][0]
        for node, versions in answered:
            own = versions.get(name, "missing")
            if own != usual:
                what = f"{name} is {own}, on {counted[usual]} of {len(answered)} nodes {usual}"
                yield _finding("blocker", node, what, "start all nodes from one image")


def _speed_findings(nodes: Sequence[Node]) -> Iterator[Finding]:
    speeds = [(node, node.store.read) for node in nodes if node.store and not node.store.error]
    if not speeds:
        return
    usual = statistics.median(speed for _, speed in speeds)
    for node, speed in speeds:
        if speed < SLOW * usual:
            what = f"reads {speed / 1e6:.0f} MB/s from the store, the median node {usual / 1e6:.0f}"
            yield _finding("warning", node, what, "look for another route, zone or a smaller machine type")


def _of_node(node: Node, memory: int, patience: float) -> Iterator[Finding]:
    if node.facts is None:
        what = f"did not answer within {patience:g} s"
        yield _finding("blocker", node, what, "see its raylet.out, or end the node and let another take its place")
        return
    yield from _store_findings(node, patience)
    yield from _clock_findings(node)
    yield from _size_findings(node, node.facts, memory)
    yield from _gpu_findings(node, node.facts)


def _store_findings(node: Node, patience: float) -> Iterator[Finding]:
    if node.store is None:
        what = f"the store did not answer within {patience:g} s"
        yield _finding("blocker", node, what, "check the node's route, its firewall and AWS_ENDPOINT_URL")
    elif node.store.error:
        yield _finding("blocker", node, node.store.error, "every node reads data and writes checkpoints itself")


def _clock_findings(node: Node) -> Iterator[Finding]:
    if node.clock is None:
        return
    off = abs(node.clock.ahead) - node.clock.error  # surely
    if off > CLOCK_WARNING:
        level: Level = "blocker" if off > SKEW_SECONDS else "warning"
        what = f"its clock is {node.clock.ahead:+.2f} s from the driver's, within {node.clock.error:.2f} s"
        yield _finding(level, node, what, "start chrony or another NTP client on it")


def _size_findings(node: Node, facts: Facts, memory: int) -> Iterator[Finding]:
    if node.cpus and facts.memory < memory:
        what = f"{facts.memory / GIB:.1f} GiB of memory, the run needs {memory / GIB:.1f} to start"
        yield _finding("blocker", node, what, "take a machine with more")
    if facts.disk_free < DISK_WARNING:
        level: Level = "blocker" if facts.disk_free < DISK_BLOCKER else "warning"
        what = f"{facts.disk_free / GIB:.1f} GiB free in the temporary folder"
        yield _finding(
            level, node, what, "objects are spilled there: take a larger disk, or remove old sessions of Ray"
        )
    if facts.file_limit < FILES_WARNING:
        level = "blocker" if facts.file_limit < FILES_BLOCKER else "warning"
        what = f"{facts.file_limit} open files a process"
        yield _finding(level, node, what, f"`ulimit -n {FILES_WARNING}` before `ray start`")
    if facts.shared_memory < node.object_store:
        what = f"/dev/shm has {facts.shared_memory / GIB:.1f} GiB, the object store {node.object_store / GIB:.1f}"
        yield _finding("warning", node, what, "enlarge /dev/shm: what does not fit goes to the slow disk")


def _gpu_findings(node: Node, facts: Facts) -> Iterator[Finding]:
    for gpu in facts.gpus:
        if gpu.ecc_errors:
            what = f"GPU {gpu.index} ({gpu.name}) has {gpu.ecc_errors} uncorrected ECC errors"
            yield _finding("blocker", node, what, "restart the node, and replace it if they come back")
        if gpu.throttled:
            what = f"GPU {gpu.index} ({gpu.name}) is slowed down by: {', '.join(gpu.throttled)}"
            yield _finding("warning", node, what, "look at its cooling and power")


def _finding(level: Level, node: Node, what: str, fix: str) -> Finding:
    return Finding(level=level, node=node.address, what=what, fix=fix)
