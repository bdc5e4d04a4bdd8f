"""Attacks a server of its own for a while, and reads the memory of its processes."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks._measure import RESULTS, keep
from benchmarks.serve_abuse.attack import CLIENTS, Attack
from benchmarks.serve_failures import processes
from benchmarks.serve_load.bundles import write_untrained
from blip3o import log, settings
from cluster.ports import free_ports
from jobs.serve import start

SECONDS, WARM_UP_S = 60.0, 30.0
MAX_WAITING, BATCH = 10, 4  # rows of the replica: 50 clients want five times as many
KINDS = ("proxy", "ingress", "replica")


def memory() -> dict[str, float]:
    """Resident memory of this program's proxy, ingress and replica, MiB: the most of each kind."""
    found: dict[str, float] = {}
    for kind in KINDS:
        for process in processes(kind):
            with suppress(psutil.NoSuchProcess):
                found[kind] = max(found.get(kind, 0.0), process.memory_info().rss / 2**20)
    return found


def watch(seconds: float) -> list[dict[str, float]]:
    """The memory, once a second."""
    samples = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        samples.append(memory())
        time.sleep(1)
    return samples


def growth(samples: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """By process: the median of the first third and of the last third, MiB."""
    third = max(1, len(samples) // 3)
    return {
        kind: {
            "before": round(statistics.median(sample[kind] for sample in samples[:third]), 1),
            "after": round(statistics.median(sample[kind] for sample in samples[-third:]), 1),
        }
        for kind in KINDS
    }


def main(argv: list[str] | None = None) -> int:
    """Prints what the clients were answered, and the result as a line of JSON, which it keeps in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--warm-up", type=float, default=WARM_UP_S)
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(argv)
    log.configure()
    settings.configure_ray()
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_untrained(f"{folder}/bundle", "nano")
        server = start(bundle, port=port, options={"max_waiting": MAX_WAITING, "batch_size": BATCH})
        try:
            with Attack(port, clients=chosen.clients) as attack:
                watch(chosen.warm_up)
                samples = watch(chosen.seconds)
        finally:
            server.stop()
    found = growth(samples)
    worst = max(found.values(), key=lambda each: each["after"] / each["before"])
    faults = {what: count for what, count in attack.faults.items() if count}
    for what, count in sorted(attack.statuses.items()):
        print(f"{what}: {count}")
    keep(
        "serve_abuse",
        {
            "ratio": round(worst["after"] / worst["before"], 3),
            "ours": worst["after"],
            "other": worst["before"],
            "unit": "MiB",
            "n": len(samples),
            "memory": found,
            "served": len(attack.served),
            "median_s": round(statistics.median(attack.served), 2) if attack.served else None,
            "faults": faults,
            "replies": dict(sorted(attack.statuses.items())),
        },
        chosen.results,
    )
    return 1 if faults or not attack.served else 0
