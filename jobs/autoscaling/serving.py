"""A served bundle on an autoscaling cluster: load adds replicas and with them nodes, and both go when it ends."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from blip3o.config.recipe import SUBCLUSTER
from blip3o.errors import ServiceError
from cluster.fake.status import Sample
from cluster.ports import LOOPBACK, free_ports
from jobs.autoscaling.scenarios import PATIENCE_S, Scene
from jobs.deployment.cluster import ServeCluster
from serve.config.options import ServeConfig
from serve.deployments.configs import Config, first_config

SERVE = "serve"
CLIENTS = 6
_RETRY_S = 0.5  # after an answer that is no image, as while a replica starts
_IMAGE = {"prompt": "two red circles", "n": 2, "num_inference_steps": 20, "response_format": "b64_json"}


def serve_under_load(scene: Scene, bundle: str, *, replicas: int = 2) -> int:
    """Serves a bundle with up to `replicas` replicas, each on a node of its own; returns how many requests succeeded.

    Clients ask for images until there are as many nodes. Then they stop, and all nodes but one must go.
    """
    cluster = ServeCluster(scene.cluster.dashboard_url)
    config, url = _config(bundle, replicas)
    scene.mark(f"serve: one replica, up to {replicas} under load")
    cluster.apply(config)
    scene.until(lambda sample: len(sample.of(SERVE)) == 1, "a node for the first replica")
    cluster.wait([each["name"] for each in config["applications"]], timeout_s=PATIENCE_S)
    with _load(url) as answered:
        scene.mark(f"{CLIENTS} clients ask for images")
        scene.until(_serving(replicas), f"{replicas} nodes under load")
    scene.mark("the clients stop")
    for client in answered:
        if client.result() == 0:
            raise ServiceError(f"a client of {url} got no image: see the logs in {scene.cluster.temp_dir}")
    scene.until(_serving(1), "one node without load")
    cluster.apply(config | {"applications": []})
    scene.mark("nothing is served any more")
    return sum(client.result() for client in answered)


def _serving(count: int) -> Callable[[Sample], bool]:
    def holds(sample: Sample) -> bool:
        return len(sample.of(SERVE)) == count

    return holds


def _config(bundle: str, replicas: int) -> tuple[Config, str]:
    """What `blip3o deploy` sends, on nodes of the serve group, of which a replica takes nearly all; and its URL."""
    port = free_ports(1)[0]
    options = ServeConfig(
        bundle=bundle,
        max_replicas=replicas,
        target_rows=1,
        upscale_delay_s=1,
        downscale_delay_s=3,
        ingress_replicas=1,
        num_cpus=0.8,
    )
    config = first_config(options, host=LOOPBACK, port=port) | {"proxy_location": "HeadOnly"}
    for application in config["applications"]:
        for deployment in application["deployments"]:
            deployment["ray_actor_options"]["label_selector"] = {SUBCLUSTER: SERVE}
    return config, f"http://{LOOPBACK}:{port}"


@contextmanager
def _load(url: str) -> Iterator[list[Future[int]]]:
    """Clients that ask for images, one after the other, until the end of the block; each counts those that it got."""
    ended = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        try:
            yield [pool.submit(_ask_until, ended, url) for _ in range(CLIENTS)]
        finally:
            ended.set()


def _ask_until(ended: threading.Event, url: str) -> int:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = json.dumps(_IMAGE).encode()
    answered = 0
    while not ended.is_set():
        request = urllib.request.Request(f"{url}/v1/images/generations", body, {"Content-Type": "application/json"})
        try:
            with direct.open(request, timeout=PATIENCE_S) as answer:
                answered += bool(json.load(answer)["data"])
        except urllib.error.URLError:  # too busy (429 or 503), or not up yet
            ended.wait(_RETRY_S)
    return answered
