"""Kills the processes of a server under load, one after the other: `python -m benchmarks.serve_failures`.

SIGKILL of a proxy, the controller, an ingress and a replica: with one of each on one node (scenario `one`); with two
on two nodes, and of a whole node (`two`; processes of this machine, whose proxies share a port); and of a replica that
has a spare one (`spare`). Four clients of the stock `openai` library ask without a pause. The table says for each
victim: replies other than 200 and lost connections, by kind; calls that failed although the library tried twice again;
the longest time without a reply, the slowest call, and the seconds until a new process had taken its place. For a
replica, it also says where its successor's time went.
"""

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil

from benchmarks._measure import RESULTS, keep
from benchmarks.serve_load.bundles import write_untrained
from blip3o import log, settings
from cluster.ports import LOOPBACK, free_ports
from jobs.deployment.checks import Gate
from jobs.deployment.cluster import ServeCluster
from jobs.deployment.rollout import Canary, Rollout
from jobs.serve import build_config
from serve.deployments.configs import application_name
from serve.deployments.options import GENERATOR
from serve.http.files import HEADER

NAME, CLIENTS, STEPS = "nano", 4, 4
SETTLE_S, WATCH_S, PATIENCE_S = 3.0, 3.0, 300.0
VICTIMS = {
    "controller": "ray::ServeController",
    "proxy": "ray::ProxyActor",
    "ingress": "Ingress",
    "replica": "Generator",
}
NODE = "node"  # a victim too: everything on it


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How many nodes there are, each with a proxy, an ingress and a replica, and which victims there are."""

    nodes: int
    victims: tuple[str, ...]
    spare: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """Of `ServeConfig`."""
        each = {"num_cpus": 1, "ingress_replicas": self.nodes, "spare_replicas": self.spare}
        return each | {"min_replicas": self.nodes, "max_replicas": self.nodes + self.spare}


SCENARIOS = {
    "one": Scenario(nodes=1, victims=tuple(VICTIMS)),
    "two": Scenario(nodes=2, victims=(*VICTIMS, NODE)),
    "spare": Scenario(nodes=1, victims=("replica",), spare=1),
}


class Transport(httpx2.HTTPTransport):
    """Counts what is no success, before the client tries again, and notes when replies come."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: Counter[str] = Counter()
        self.replies: list[float] = []
        self.bundles: Counter[str] = Counter()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """As the base class does."""
        try:
            response = super().handle_request(request)
        except httpx2.TransportError as error:
            self.faults[type(error).__name__] += 1
            raise
        if response.status_code == 200:
            self.replies.append(time.monotonic())
            self.bundles[json.loads(response.headers[HEADER])["bundle"]] += 1
        else:
            self.faults[str(response.status_code)] += 1
        return response


class Load:
    """Clients that ask for images without a pause."""

    def __init__(self, url: str, *, clients: int = CLIENTS, images: int = 1, steps: int = STEPS) -> None:
        """`images` of `steps` steps by each call of each client."""
        self._images, self._steps = images, steps
        self._transport = Transport()
        http = httpx2.Client(transport=self._transport, timeout=PATIENCE_S)
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=http)
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(clients)]
        self._done = threading.Event()
        self._calls: list[tuple[float, float]] = []  # when they ended, and how long they took
        self.lost = 0

    def _ask(self, seed: int) -> None:
        body = {"seed": seed, "num_inference_steps": self._steps}
        while not self._done.is_set():
            began = time.monotonic()
            try:
                self._client.images.generate(prompt="a red circle", n=self._images, extra_body=body)
            except openai.APIError:
                self.lost += 1
            self._calls.append((time.monotonic(), time.monotonic() - began))

    def __enter__(self) -> "Load":
        """Starts the clients."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends them after their current calls."""
        self._done.set()
        for thread in self._threads:
            thread.join()

    @property
    def bundles(self) -> dict[str, int]:
        """Replies with images, by the sha256 of the bundle that made them."""
        return dict(self._transport.bundles)

    @property
    def answered(self) -> int:
        """Calls that have ended."""
        return len(self._calls)

    @property
    def faults(self) -> dict[str, int]:
        """Replies that are no success, by status, and lost connections."""
        return dict(self._transport.faults)

    def longest_gap(self, since: float) -> float:
        """The longest time without a reply, from this time on, seconds."""
        times = [since, *(moment for moment in self._transport.replies if moment > since), time.monotonic()]
        return max(later - earlier for earlier, later in zip(times, times[1:], strict=False))

    def slowest(self, since: float) -> float:
        """The longest call that ended after this time, with what the library tried again, seconds."""
        return max((seconds for end, seconds in self._calls if end > since), default=0.0)


def processes(kind: str) -> list[psutil.Process]:
    """The processes of this program's Serve, by what they are."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if VICTIMS[kind] in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def kill(kind: str, load: Load, server: Rollout, kill_node: Callable[[], None]) -> dict[str, Any]:
    """Kills one process of a kind under load, and waits until another one has its place."""
    time.sleep(SETTLE_S)
    before = [] if kind == NODE else processes(kind)
    faults, lost, began = Counter(load.faults), load.lost, time.monotonic()
    if kind == NODE:
        kill_node()
    else:
        before[0].send_signal(signal.SIGKILL)
    while not _is_back(kind, before, server) and time.monotonic() - began < PATIENCE_S:
        time.sleep(0.2)
    back = time.monotonic() - began
    time.sleep(WATCH_S)
    row = {
        "victim": kind,
        "faults": dict(Counter(load.faults) - faults),
        "lost": load.lost - lost,
        "gap_s": round(load.longest_gap(began), 1),
        "slowest_call_s": round(load.slowest(began), 1),
        "back_s": round(back, 1),
    }
    return row | ({"start_s": _start_of_the_last_replica(server)} if kind == "replica" else {})


def _start_of_the_last_replica(server: Rollout) -> dict[str, float]:
    """The phases of a replica's start, of the one that has been there for the shortest time, seconds."""
    from ray import serve as ray_serve

    application = application_name(server.config)
    handle = ray_serve.get_deployment_handle(GENERATOR, application)
    found: list[dict[str, float]] = handle.broadcast("start_seconds").results(timeout_s=PATIENCE_S)
    return found[-1]


def _is_back(kind: str, before: Sequence[psutil.Process], server: Rollout) -> bool:
    if kind == NODE:
        details = server.cluster.details()
        return len(details["proxies"]) == 1 and _all_run(details)
    living = processes(kind)
    if len(living) < len(before) or before[0] in living:
        return False
    if kind == "controller":
        return True
    details = server.cluster.details()
    if kind == "proxy":
        proxies = details["proxies"].values()
        return len(proxies) == len(before) and all(proxy["status"] == "HEALTHY" for proxy in proxies)
    return _all_run(details)


def _all_run(details: dict[str, Any]) -> bool:
    return all(application["status"] == "RUNNING" for application in details["applications"].values())


@contextmanager
def served(bundle: str, *, nodes: int, options: dict[str, Any]) -> Iterator[tuple[Rollout, Callable[[], None]]]:
    """A server on that number of nodes, and what kills the last node."""
    import ray
    from ray import serve as ray_serve
    from ray.cluster_utils import Cluster
    from ray.dashboard.utils import ray_address_to_api_server_url

    dashboard, port = free_ports(2)
    head = {"num_cpus": 4, "dashboard_port": dashboard, "include_dashboard": True, "object_store_memory": 150_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    others = [cluster.add_node(num_cpus=2, object_store_memory=100_000_000) for _ in range(nodes - 1)]
    ray.init(cluster.address, log_to_driver=False)
    server = Rollout(
        cluster=ServeCluster(ray_address_to_api_server_url(cluster.address)),
        config=build_config({"bundle": bundle, "name": NAME, **options}),
        url=f"http://{LOOPBACK}:{port}",
        gate=Gate(suites=()),
        canary=Canary(share=0, seconds=0),
        start_timeout_s=PATIENCE_S,
        echo=lambda line: None,
    )
    try:
        server.run(host=LOOPBACK, port=port)
        yield server, lambda: cluster.remove_node(others.pop(), allow_graceful=False)
    finally:
        ray_serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def main(argv: list[str] | None = None) -> int:
    """Prints a table, and the result as a line of JSON, which it keeps in a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scenarios", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--victims", nargs="+", choices=[*VICTIMS, NODE], default=[*VICTIMS, NODE])
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(argv)
    log.configure()
    settings.configure_ray()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_untrained(f"{folder}/bundle", "nano")
        for name in chosen.scenarios:
            scenario = SCENARIOS[name]
            victims = [victim for victim in scenario.victims if victim in chosen.victims]
            with served(bundle, nodes=scenario.nodes, options=scenario.options) as (server, kill_node):
                with Load(server.url) as load:
                    for victim in victims:
                        rows.append({"scenario": name, **kill(victim, load, server, kill_node)})
                        print(_line(rows[-1]), flush=True)
    worst = {name: max(row["gap_s"] for row in rows if row["scenario"] == name) for name in chosen.scenarios}
    first, last = worst[chosen.scenarios[0]], worst[chosen.scenarios[-1]]
    ratio = round(first / last, 2) if last else None
    keep(
        "serve_failures",
        {"ratio": ratio, "ours": last, "other": first, "unit": "s", "n": len(rows), "rows": rows},
        chosen.results,
    )
    return 0


def _line(row: dict[str, Any]) -> str:
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(row["faults"].items())) or "none"
    line = (
        f"{row['scenario']}, SIGKILL of {row['victim']}: faults {faults}; calls lost {row['lost']}; longest gap "
        f"{row['gap_s']} s; slowest call {row['slowest_call_s']} s; back after {row['back_s']} s"
    )
    phases = ", ".join(f"{name} {seconds} s" for name, seconds in row.get("start_s", {}).items())
    return f"{line} ({phases})" if phases else line


if __name__ == "__main__":
    sys.exit(main())
