"""Two workers, one, two again, in one run: `python -m benchmarks.elastic`.

Two nodes (processes of this machine) have room for one worker each. The second one is drained, as a spot machine is
before it is reclaimed: the run saves a checkpoint at once, and continues with one worker when the node is gone. Then a
new node joins. The report has the numbers of workers with the step at which each began, and the largest relative
difference of a loss from a run with two workers throughout. The loop itself asserts, by their numbers, that every step
has the same micro-batches. Needs the extra `demo`.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks._measure import RESULTS, keep
from benchmarks.recovery.world import PATIENCE_S, attempts, prepare, store, tree, wait
from blip3o import log, settings
from blip3o.config.load import build_recipe
from blip3o.config.recipe import Recipe

WORKER_CPUS = 2
DRAIN_S = 10  # seconds from the notice to the end of the node
SHRUNK_AND_GROWN = [2, 1, 2]
# fp32 sums over ranks in another order differ by some 1e-7 of a loss, and the difference grows with the steps.
MAX_DIFFERENCE = 1e-3
HEAD = {"place": "head"}


class Nodes:
    """A cluster of a head with room for one worker and the stream, and of one node that joins and leaves."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": WORKER_CPUS + 1, "labels": HEAD, "object_store_memory": 200_000_000}
        self._cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": True})
        self._node: Any = None
        self.address = str(self._cluster.address)

    def grow(self) -> None:
        """Adds a node."""
        self._node = self._cluster.add_node(num_cpus=WORKER_CPUS, object_store_memory=100_000_000)

    def drain(self) -> None:
        """Gives the node notice that it will be reclaimed; returns immediately."""
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        which = ["--address", self.address, "--node-id", self._node.node_id]
        ray = str(Path(sys.executable).with_name("ray"))
        limit = ["--deadline-remaining-seconds", str(DRAIN_S)]
        subprocess.run([ray, "drain-node", *which, *reason, *limit], check=True, capture_output=True)

    def remove(self) -> None:
        """Removes the node without further notice."""
        self._cluster.remove_node(self._node, allow_graceful=False)

    def stop(self) -> None:
        """Ends every process of the cluster."""
        self._cluster.shutdown()


def resized(nodes: Nodes, recipe: Recipe) -> list[dict[str, Any]]:
    """Trains the recipe while the second node is drained, removed and replaced; returns the attempts."""
    from jobs.training.run import train

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(train, recipe)

        def reached(count: int) -> bool:
            return run.done() or len(attempts(recipe)) >= count

        wait(lambda: reached(1))
        time.sleep(3)
        nodes.drain()
        time.sleep(DRAIN_S)
        nodes.remove()
        wait(lambda: reached(2))
        nodes.grow()
        wait(lambda: reached(3))
        run.result(PATIENCE_S)
    return attempts(recipe)


def losses(recipe: Recipe) -> list[float]:
    """The loss of every step."""
    from blip3o.runs.rows import rows_of

    return [row["loss"] for row in rows_of(recipe)]


def main(argv: list[str] | None = None) -> int:
    """Runs both, prints the result as a line of JSON and keeps it in a file; 1 if it is not as expected."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--zero", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--store", choices=("s3", "folder"), default="s3", help="where the runs are kept")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(argv)
    log.configure()
    settings.configure_ray()
    settings.override({"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"})
    with tempfile.TemporaryDirectory() as folder, store(chosen.store, Path(folder)) as base:
        result = measure(base, zero=chosen.zero, steps=chosen.steps)
    keep("elastic", result, chosen.results)
    close = result["largest relative difference of a loss"] <= MAX_DIFFERENCE
    return 0 if result["workers"] == SHRUNK_AND_GROWN and close else 1


def measure(base: str, *, zero: int, steps: int) -> dict[str, Any]:
    """Both runs, compared."""
    import ray

    from jobs.training.run import train

    prepare(base)
    here = {"data_labels": HEAD, "cpus_per_worker": WORKER_CPUS}
    fixed = tree(base, "fixed", zero=zero, steps=steps)
    elastic = tree(base, "elastic", zero=zero, steps=steps, workers={"min": 1, "max": 2})
    made = [build_recipe(values | {"parallel": values["parallel"] | here}) for values in (fixed, elastic)]
    nodes = Nodes()
    nodes.grow()
    ray.init(nodes.address, log_to_driver=False)
    try:
        train(made[0])
        attempts_seen = resized(nodes, made[1])
    finally:
        ray.shutdown()
        nodes.stop()
    one, other = map(losses, made)
    return {
        "workers": [start["workers"] for start in attempts_seen],
        "first steps": [start["step"] - 1 for start in attempts_seen],
        "steps": [len(one), len(other)],
        "largest relative difference of a loss": max(abs(a - b) / abs(a) for a, b in zip(one, other, strict=True)),
        "of the first resized step": abs(one[attempts_seen[1]["step"]] / other[attempts_seen[1]["step"]] - 1),
    }


if __name__ == "__main__":
    sys.exit(main())
