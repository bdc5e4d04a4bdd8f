"""The seconds from a kill to the next completed step, phase by phase: `python -m benchmarks.recovery.seconds`.

Each kind of kill gets a run of its own, which is killed several times, each time `--settled` seconds after its first
step or later, once it has one more checkpoint, and is then ended:

- `worker`: one training worker, of a run with a Ray of its own;
- `driver`: the driver with all workers and its own Ray, after which the run is submitted again at once;
- `job`: the same on a cluster, whose processes stay;
- `node`: the raylet of a node with one of the two workers. Another node is idle, and takes over; a new one joins.

The report has the median of each phase, and every kill. Needs the extra `demo` (a real S3 server).
"""

import argparse
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks._measure import RESULTS, keep
from benchmarks.recovery.world import PHASES, Submitted, prepare, store, tree, wait, workers_below
from blip3o import log, settings
from blip3o.runs.checkpoints import committed_steps

SETTLED_S = 38.0  # AFTER_S of jobs.training.standby, and two processes that import next to training, on two cores
STEPS = 1_000_000  # more than any measurement makes
WORKER_CPUS, STREAM_CPUS = 2, 1
HEAD = {"place": "head"}
ON_THE_HEAD = {"data_labels": HEAD, "cpus_per_worker": WORKER_CPUS}


class Nodes:
    """A cluster on this machine: a head with room for `workers` workers and the stream, and nodes for one worker."""

    def __init__(self, *, workers: int) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": workers * WORKER_CPUS + STREAM_CPUS, "labels": HEAD, "object_store_memory": 200_000_000}
        self._cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": True})
        self._nodes: list[Any] = []
        self.address = str(self._cluster.address)

    def add(self) -> None:
        """A node joins."""
        self._nodes.append(self._cluster.add_node(num_cpus=WORKER_CPUS, object_store_memory=100_000_000))

    def raylets(self) -> list[int]:
        """The process ids of all raylets."""
        return [_raylet(node) for node in (self._cluster.head_node, *self._nodes)]

    def kill_one(self) -> None:
        """Kills the raylet of a node with a worker, and forgets the node."""
        node = next(it for it in self._nodes if workers_below(_raylet(it)))
        self._nodes.remove(node)
        psutil.Process(_raylet(node)).send_signal(signal.SIGKILL)

    def stop(self) -> None:
        """Ends every process of the cluster."""
        self._cluster.shutdown()


def _raylet(node: Any) -> int:  # noqa: ANN401 - a ray.cluster_utils node
    return int(node.all_processes["raylet"][0].process.pid)


@contextmanager
def cluster(*, workers: int, nodes: int) -> Iterator[Nodes]:
    """A cluster that is stopped in the end."""
    made = Nodes(workers=workers)
    try:
        for _ in range(nodes):
            made.add()
        yield made
    finally:
        made.stop()


def measure(kind: str, base: str, folder: Path, kills: int, settled_s: float) -> dict[str, Any]:
    """Kills one run `kills` times, each `settled_s` after a first step or later; returns the seconds of each phase."""
    recipe = tree(base, f"seconds-{kind}", zero=1, steps=STEPS)
    if kind in ("worker", "driver"):
        run = Submitted(recipe, folder)
        return _measured(run, kills, settled_s, lambda: _kill(run, kind))
    recipe = recipe | {"parallel": recipe["parallel"] | ON_THE_HEAD}
    on_a_node = kind == "node"
    with cluster(workers=1 if on_a_node else 2, nodes=2 if on_a_node else 0) as nodes:
        run = Submitted(recipe, folder, address=nodes.address, raylets=nodes.raylets)
        if not on_a_node:
            return _measured(run, kills, settled_s, lambda: _kill(run, "driver"))
        return _measured(run, kills, settled_s, nodes.kill_one, after=nodes.add)


def _await_commit(run: Submitted) -> None:
    newest = newest_commit(run)
    wait(lambda: newest_commit(run) > newest)


def _await_attempt(run: Submitted, known: int) -> None:
    wait(lambda: len(run.attempts()) > known)


def _measured(
    run: Submitted,
    kills: int,
    settled_s: float,
    kill: Callable[[], None],
    *,
    after: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Kills a run by `kill()`, waits for its next step, and calls `after()`; as often as `kills` says."""
    rows = []
    try:
        wait(lambda: bool(run.attempts()))
        for number in range(kills):
            time.sleep(settled_s)
            _await_commit(run)
            known = len(run.attempts())
            at = time.time()
            kill()
            _await_attempt(run, known)
            rows.append(split(at, run.attempts()[known]))
            print(f"kill {number + 1}: {rows[-1]}", flush=True)
            after()
    finally:
        _kill(run, "driver", again=False)
    medians = {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}
    return {"median": medians, "kills": rows, "settled": settled_s}


def newest_commit(run: Submitted) -> int:
    """The step of a run's newest checkpoint; 0 if it has none."""
    return max(committed_steps(run.recipe), default=0)


def _kill(run: Submitted, kind: str, *, again: bool = True) -> None:
    """SIGKILL to the newest worker, or to the driver and all workers, after which the run is submitted again."""
    workers = run.workers()
    for process in workers[-1:] if kind == "worker" else [psutil.Process(run.process.pid), *workers]:
        process.send_signal(signal.SIGKILL)
    if kind != "worker":
        run.process.wait()
        if again:
            run.submit()


def split(killed: float, attempt: dict[str, Any]) -> dict[str, float]:
    """Seconds of each phase of an attempt, from the time of a kill, and of `all` of them."""
    ends = [attempt["began"], *(attempt[name] for name in PHASES[1:])]
    begins = [killed, *ends[:-1]]
    taken = {name: round(end - begin, 2) for name, begin, end in zip(PHASES, begins, ends, strict=True)}
    return {**taken, "all": round(ends[-1] - killed, 2)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the kinds that are asked for; prints each as a line of JSON and keeps it in a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=("worker", "driver", "job", "node"), default=["worker"])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--settled", type=float, default=SETTLED_S, help="seconds of training before a kill, at least")
    parser.add_argument("--store", choices=("s3", "folder"), default="s3", help="where the runs are kept")
    parser.add_argument("--label", default="", help="a word in the name of the result, such as before")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(argv)
    log.configure()
    settings.configure_ray()
    with tempfile.TemporaryDirectory() as folder, store(chosen.store, Path(folder)) as base:
        prepare(base)
        for kind in chosen.kinds:
            result = measure(kind, base, Path(folder), chosen.kills, chosen.settled)
            label = f"-{chosen.label}" if chosen.label else ""
            keep(f"recovery-seconds-{kind}{label}", result, chosen.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
