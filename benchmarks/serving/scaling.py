"""Replicas that follow the load, 1 → 3 → 1, without a failed request: `python -m benchmarks.serving.scaling`.

One client of the stock `openai` library asks for an image after the other; then eight ask for four images each, without
a pause, until there are three replicas; then the one alone again, until there is one. The table has a line for every
change that Serve's REST API shows: the second, and how many replicas run and how many are wanted. The result says how
long it took from the burst to the second and the third replica, and from its end back to one.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks._measure import RESULTS, keep
from benchmarks.serve_failures import PATIENCE_S, Load, served
from benchmarks.serve_load.bundles import write_untrained
from blip3o import log, settings
from jobs.deployment.rollout import Rollout
from serve.deployments.configs import application_name
from serve.deployments.options import GENERATOR

MOST, CLIENTS, IMAGES, STEPS = 3, 8, 4, 100
OPTIONS = {
    "min_replicas": 1,
    "max_replicas": MOST,
    "num_cpus": 1,
    "ingress_replicas": 1,
    "upscale_delay_s": 2,
    "downscale_delay_s": 10,
}
POLL_S = 0.2


class Replicas:
    """The replicas of the model over time, as Serve's REST API says them."""

    def __init__(self, server: Rollout) -> None:
        self._server = server
        self._began = time.monotonic()
        self.changes: list[dict[str, float]] = []

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return round(time.monotonic() - self._began, 1)

    def wait_until(self, is_enough: Callable[[int], bool]) -> float:
        """Seconds until the number that runs is as wished; notes every change until then. Gives up after a while."""
        began = time.monotonic()
        while True:
            application = self._server.cluster.details()["applications"][application_name(self._server.config)]
            deployment = application["deployments"][GENERATOR]
            running = sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])
            found = {"running": running, "wanted": deployment["target_num_replicas"]}
            if not self.changes or found != {name: self.changes[-1][name] for name in found}:
                self.changes.append({"second": self.now, **found})
                print(f"second {self.now:5.1f}: {running} run, {found['wanted']} wanted", flush=True)
            seconds = time.monotonic() - began
            if is_enough(running):
                return round(seconds, 1)
            if seconds > PATIENCE_S:
                raise SystemExit(f"the replicas did not come or go within {PATIENCE_S:.0f} s: there are {running}")
            time.sleep(POLL_S)


@contextmanager
def loads(server: Rollout) -> Iterator[tuple[Load, Load]]:
    """The load that stays, which runs already, and the burst, which its user starts."""
    with Load(server.url, clients=1, steps=1) as steady:
        yield steady, Load(server.url, clients=CLIENTS, images=IMAGES, steps=STEPS)


def main(argv: list[str] | None = None) -> int:
    """Prints the changes, and the result as a line of JSON, which it keeps in a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(argv)
    log.configure()
    settings.configure_ray()
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_untrained(f"{folder}/bundle", "nano")
        with served(bundle, nodes=1, options=OPTIONS) as (server, _), loads(server) as both:
            keep("serve_scaling", measure(server, *both), chosen.results)
    return 0


def measure(server: Rollout, steady: Load, burst: Load) -> dict[str, Any]:
    """The reaction to a burst and to its end, as the result has it; `ratio` is down over up."""
    replicas = Replicas(server)
    replicas.wait_until(lambda running: running == 1)
    with burst:
        second = replicas.wait_until(lambda running: running > 1)
        third = second + replicas.wait_until(lambda running: running == MOST)
    down = replicas.wait_until(lambda running: running == 1)
    faults = {kind: steady.faults.get(kind, 0) + burst.faults.get(kind, 0) for kind in steady.faults | burst.faults}
    return {
        "ratio": round(down / third, 2),
        "ours": round(third, 1),
        "other": down,
        "unit": "s",
        "n": steady.answered + burst.answered,
        "second_replica_s": second,
        "faults": faults,
        "lost": steady.lost + burst.lost,
        "changes": replicas.changes,
    }


if __name__ == "__main__":
    sys.exit(main())
