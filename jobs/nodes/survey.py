"""Runs the probe on all nodes of a cluster at once, with a deadline. A node without CPUs is probed too."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from blip3o.evaluate.progress import progress_bar
from jobs.common import join_ray
from jobs.nodes.judge import Clock, Node
from jobs.nodes.probe import Facts, StoreFacts, measure_node, measure_store

HEAD_RESOURCE = "node:__internal_head__"
GROUP_LABEL = "ray.io/node-group"  # set by Ray's autoscaler and by KubeRay
CLOCK_ROUNDS = 5
CLOCK_SECONDS = 5.0


class _Probe:
    """What runs on each node."""

    def facts(self) -> Facts:
        return measure_node()

    def store(self, uri: str) -> StoreFacts:
        return measure_store(uri)

    def now(self) -> float:
        return time.time()


def survey(uri: str, patience: float) -> list[Node]:
    """All nodes that are alive, with what each has measured within `patience` seconds; `uri` is where to write."""
    join_ray()
    listed = [node for node in ray.nodes() if node["Alive"]]
    probes = [_start(node["NodeID"]) for node in listed]
    asked = [[probe.facts.remote(), probe.store.remote(uri)] for probe in probes]
    answered = _wait([ref for refs in asked for ref in refs], patience)
    nodes = []
    for node, probe, (facts, store) in zip(listed, probes, asked, strict=True):
        clock = _clock(probe) if facts in answered and store in answered else None
        nodes.append(_node(node, facts=answered.get(facts), store=answered.get(store), clock=clock))
        ray.kill(probe)
    return nodes


def _start(node_id: str) -> "ray.actor.ActorHandle[_Probe]":
    place = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(_Probe).options(num_cpus=0, scheduling_strategy=place).remote()


def _wait(refs: Sequence[Any], patience: float) -> dict[Any, Any]:
    """The answers that come in time, by their reference. A node that dies meanwhile has none."""
    answers: dict[Any, Any] = {}
    waiting, end = list(refs), time.monotonic() + patience
    with progress_bar("probing nodes", len(refs)) as advance:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=max(0.0, end - time.monotonic()))
            if not done:
                break
            advance(len(done))
            try:
                answers[done[0]] = ray.get(done[0])
            except ray.exceptions.RayActorError:
                continue
    return answers


def _clock(probe: "ray.actor.ActorHandle[_Probe]") -> Clock | None:
    """The node's clock at the middle of the shortest of some round trips; half of that trip bounds the error."""
    rounds = []
    for _ in range(CLOCK_ROUNDS):
        began = time.time()
        try:
            there = ray.get(probe.now.remote(), timeout=CLOCK_SECONDS)
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
            return None
        half = (time.time() - began) / 2
        rounds.append(Clock(ahead=there - (began + half), error=half))
    return min(rounds, key=lambda clock: clock.error)


def _node(listed: Mapping[str, Any], **measured: Any) -> Node:  # noqa: ANN401 - the measured fields of Node
    resources = listed["Resources"]
    fallback = "head" if HEAD_RESOURCE in resources else "workers"
    return Node(
        address=f"{listed['NodeManagerAddress']} ({listed['NodeID'][:8]})",
        group=listed.get("Labels", {}).get(GROUP_LABEL, fallback),
        cpus=resources.get("CPU", 0.0),
        object_store=resources.get("object_store_memory", 0.0),
        **measured,
    )
