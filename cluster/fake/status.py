"""What an autoscaler says of its cluster, over time: which nodes there are, which it starts, and why it changed them.

Everything is the autoscaler's own status, as `ray status` shows it; nothing is derived from what jobs do.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from blip3o.errors import ServiceError

POLL_S = 0.25
_LOG = "session_latest/logs/events/event_AUTOSCALER.log"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The cluster at a Unix time: the nodes that are alive, with their group, and how many of a group are starting."""

    time: float
    nodes: Mapping[str, str]
    starting: Mapping[str, int]

    def of(self, group: str) -> list[str]:
        """Ids of the nodes of a group that are alive, the oldest first."""
        return sorted(node for node, name in self.nodes.items() if name == group)

    def counts(self) -> dict[str, int]:
        """Alive nodes by group; groups without any are missing."""
        return dict(Counter(self.nodes.values()))


@dataclass(frozen=True)
class Event:
    """Something that happened, at a Unix time."""

    time: float
    message: str


class StatusWatch:
    """Asks the autoscaler a few times a second, in a thread, and keeps what has changed. A context manager."""

    def __init__(
        self, address: str, groups: list[str], *, on_change: Callable[[Sample], None] = lambda _: None
    ) -> None:
        """Nothing is asked yet. `address` is `HOST:PORT` of the GCS. Nodes of other groups, as the head, are left out.

        `on_change` gets every sample that differs from the one before, in the thread.
        """
        self.address = address
        self._on_change = on_change
        self._groups = frozenset(groups)
        self._samples: list[Sample] = []
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="autoscaler-status", daemon=True)

    @property
    def samples(self) -> list[Sample]:
        """Those that differ from the one before."""
        with self._changed:
            return list(self._samples)

    def wait(self, holds: Callable[[Sample], bool], what: str, *, timeout_s: float) -> Sample:
        """The first sample from now on (the current one included) for which `holds` is true.

        Raises `ServiceError` with `what` and the last sample after `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            seen = max(len(self._samples) - 1, 0)
            while True:
                for sample in self._samples[seen:]:
                    if holds(sample):
                        return sample
                seen = len(self._samples)
                if not self._changed.wait(deadline - time.monotonic()):
                    last = self._samples[-1].counts() if self._samples else "nothing"
                    raise ServiceError(f"{what}: not within {timeout_s:.0f} s; the autoscaler says {last}")

    def _follow(self) -> None:
        from ray.exceptions import RpcError

        while not self._ended.is_set():
            try:
                self._add(self._ask())
            except RpcError:  # the GCS is busy or has gone; who waits gives up by its own limit
                pass
            self._ended.wait(POLL_S)

    def _ask(self) -> Sample:
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(self.address)
        alive = {str(node.node_id): node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes)}
        starting: Counter[str] = Counter()
        for launch in status.pending_launches:
            starting[launch.ray_node_type_name] += launch.count
        starting.update(node.ray_node_type_name for node in status.pending_nodes)
        nodes = {node: group for node, group in alive.items() if group in self._groups}
        return Sample(time=float(status.stats.request_ts_s or time.time()), nodes=nodes, starting=dict(starting))

    def _add(self, sample: Sample) -> None:
        with self._changed:
            last = self._samples[-1] if self._samples else None
            if last is None or (last.nodes, last.starting) != (sample.nodes, sample.starting):
                self._samples.append(sample)
                self._changed.notify_all()
                self._on_change(sample)

    def __enter__(self) -> Self:
        """Starts to ask."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the thread."""
        self._ended.set()
        self._thread.join()


def decisions(temp_dir: Path) -> list[Event]:
    """What the autoscaler has logged of its decisions, such as `Removing 1 nodes of type trainer (idle).`"""
    file = temp_dir / _LOG
    if not file.exists():  # it has decided nothing yet
        return []
    lines: list[dict[str, Any]] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    events = [Event(float(each["timestamp"]), each["message"]) for each in lines if each["severity"] != "DEBUG"]
    # While something cannot start, it says so every second.
    return [event for last, event in pairwise([None, *events]) if event and (not last or last.message != event.message)]


def as_json(samples: list[Sample], events: list[Event], temp_dir: Path) -> dict[str, Any]:
    """Samples, events and the autoscaler's decisions as JSON values, with seconds since the first sample."""
    began = samples[0].time

    def since(rows: Sequence[Sample | Event]) -> list[dict[str, Any]]:
        return [asdict(row) | {"time": round(row.time - began, 1)} for row in rows]

    return {"samples": since(samples), "events": since(events), "decisions": since(decisions(temp_dir))}
