"""Kills the processes of a server under load, one after the other: `python -m benchmarks.serve_failures`.

SIGKILL of a proxy, the controller, an ingress and a replica, with one of each on one node, and with two on two nodes
(processes of this machine, whose proxies share a port). Four clients of the stock `openai` library ask without a pause.
The table says for each victim: replies other than 200 and lost connections, by kind; calls that failed although the
library tried twice again; the longest time without a reply, and the seconds until a new process had taken its place.
"""

import argparse
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil

from benchmarks._measure import RESULTS, keep
from blip3o import log, settings
from blip3o.bundle.layout import BundleConfig
from blip3o.bundle.writing import write_bundle
from blip3o.config.model import ModelConfig
from blip3o.config.presets.models import PRESETS
from blip3o.config.recipe import TemplateConfig
from blip3o.data.text.tokenizer import ChatTokenizer
from cluster.ports import LOOPBACK, free_ports
from jobs.deployment.checks import Gate
from jobs.deployment.cluster import ServeCluster
from jobs.deployment.rollout import Canary, Rollout
from jobs.serve import build_config

NAME, CLIENTS, STEPS = "nano", 4, 4
SETTLE_S, WATCH_S, PATIENCE_S = 5.0, 5.0, 300.0
VICTIMS = {
    "controller": "ray::ServeController",
    "proxy": "ray::ProxyActor",
    "ingress": "Ingress",
    "replica": "Generator",
}


class Transport(httpx2.HTTPTransport):
    """Counts what is no success, before the client tries again, and notes when replies come."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: Counter[str] = Counter()
        self.replies: list[float] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """As the base class does."""
        try:
            response = super().handle_request(request)
        except httpx2.TransportError as error:
            self.faults[type(error).__name__] += 1
            raise
        if response.status_code == 200:
            self.replies.append(time.monotonic())
        else:
            self.faults[str(response.status_code)] += 1
        return response


class Load:
    """Clients that ask for images without a pause."""

    def __init__(self, url: str) -> None:
        self._transport = Transport()
        http = httpx2.Client(transport=self._transport, timeout=PATIENCE_S)
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=http)
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(CLIENTS)]
        self._done = threading.Event()
        self.lost = 0

    def _ask(self, seed: int) -> None:
        body = {"seed": seed, "num_inference_steps": STEPS}
        while not self._done.is_set():
            try:
                self._client.images.generate(prompt="a red circle", extra_body=body)
            except openai.APIError:
                self.lost += 1

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
    def faults(self) -> dict[str, int]:
        """Replies that are no success, by status, and lost connections."""
        return dict(self._transport.faults)

    def longest_gap(self, since: float) -> float:
        """The longest time without a reply, from this time on, seconds."""
        times = [since, *(moment for moment in self._transport.replies if moment > since), time.monotonic()]
        return max(later - earlier for earlier, later in zip(times, times[1:], strict=False))


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


def kill(kind: str, load: Load, server: Rollout) -> dict[str, Any]:
    """Kills one process of a kind under load, and waits until another one has its place."""
    time.sleep(SETTLE_S)
    before = processes(kind)
    faults, lost, began = Counter(load.faults), load.lost, time.monotonic()
    before[0].send_signal(signal.SIGKILL)
    while not _is_back(kind, before, server) and time.monotonic() - began < PATIENCE_S:
        time.sleep(0.2)
    back = time.monotonic() - began
    time.sleep(WATCH_S)
    return {
        "victim": kind,
        "faults": dict(Counter(load.faults) - faults),
        "lost": load.lost - lost,
        "gap_s": round(load.longest_gap(began), 1),
        "back_s": round(back, 1),
    }


def _is_back(kind: str, before: Sequence[psutil.Process], server: Rollout) -> bool:
    living = processes(kind)
    if len(living) < len(before) or before[0] in living:
        return False
    if kind == "controller":
        return True
    details = server.cluster.details()
    if kind == "proxy":
        proxies = details["proxies"].values()
        return len(proxies) == len(before) and all(proxy["status"] == "HEALTHY" for proxy in proxies)
    applications = details["applications"].values()
    return all(application["status"] == "RUNNING" for application in applications)


@contextmanager
def served(bundle: str, *, count: int) -> Iterator[Rollout]:
    """A server with `count` nodes, each with a proxy, an ingress and a replica."""
    import ray
    from ray import serve as ray_serve
    from ray.cluster_utils import Cluster
    from ray.dashboard.utils import ray_address_to_api_server_url

    head = {"num_cpus": 2, "include_dashboard": True, "object_store_memory": 150_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(count - 1):
        cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
    ray.init(cluster.address, log_to_driver=False)
    port = free_ports(1)[0]
    options = {"bundle": bundle, "name": NAME, "num_cpus": 1, "ingress_replicas": count}
    server = Rollout(
        cluster=ServeCluster(ray_address_to_api_server_url(cluster.address)),
        config=build_config(options | {"min_replicas": count, "max_replicas": count}),
        url=f"http://{LOOPBACK}:{port}",
        gate=Gate(suites=()),
        canary=Canary(share=0, seconds=0),
        start_timeout_s=PATIENCE_S,
        echo=lambda line: None,
    )
    try:
        server.run(host=LOOPBACK, port=port)
        yield server
    finally:
        ray_serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def write_nano(uri: str) -> str:
    """A bundle of random weights; returns its URI."""
    from blip3o.bundle.reading import build_model
    from blip3o.model.unified import initialize

    tokenizer = ChatTokenizer.train(["a red circle above a blue square"], 300)
    config = BundleConfig(model=ModelConfig(**PRESETS["nano"]), template=TemplateConfig(), max_length=160)
    model = build_model(config, tokenizer)
    initialize(model, 0)
    write_bundle(uri, config=config, tensors=dict(model.named_parameters()), tokenizer=tokenizer, provenance={})
    return uri


def main(argv: list[str] | None = None) -> int:
    """Prints a table, and the result as a line of JSON, which it keeps in a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2], help="of proxies, ingresses and replicas each")
    parser.add_argument("--victims", nargs="+", choices=list(VICTIMS), default=list(VICTIMS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(argv)
    log.configure()
    settings.configure_ray()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_nano(f"{folder}/bundle")
        for count in chosen.counts:
            with served(bundle, count=count) as server, Load(server.url) as load:
                for victim in chosen.victims:
                    rows.append({"of_each": count, **kill(victim, load, server)})
                    print(_line(rows[-1]), flush=True)
    worst = {count: max(row["gap_s"] for row in rows if row["of_each"] == count) for count in chosen.counts}
    first, last = worst[min(worst)], worst[max(worst)]
    ratio = round(first / last, 2) if last else None
    keep(
        "serve_failures",
        {"ratio": ratio, "ours": last, "other": first, "unit": "s", "n": len(rows), "rows": rows},
        chosen.results,
    )
    return 0


def _line(row: dict[str, Any]) -> str:
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(row["faults"].items())) or "none"
    return (
        f"{row['of_each']} of each, SIGKILL of {row['victim']}: faults {faults}; calls lost {row['lost']}; "
        f"longest gap {row['gap_s']} s; back after {row['back_s']} s"
    )


if __name__ == "__main__":
    sys.exit(main())
