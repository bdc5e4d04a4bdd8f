"""One real Serve for all tests of deployments: a face and a bundle, put there by `blip3o deploy`'s own code."""

import openai
import pytest

from blip3o import storage
from blip3o.bundle.reading import build_model, open_bundle
from blip3o.bundle.writing import write_bundle
from blip3o.model.unified import initialize
from cluster.ports import LOOPBACK, free_ports
from jobs.deployment.checks import Gate
from jobs.deployment.cluster import ServeCluster
from jobs.deployment.rollout import Canary, Rollout
from jobs.serve import build_config

NAME = "nano"
OPTIONS = {
    "name": NAME,
    "num_cpus": 0.2,
    "max_waiting": 10,
    "min_replicas": 2,
    "max_replicas": 2,
    "downscale_delay_s": 0,
    "upscale_delay_s": 0,
}


@pytest.fixture(scope="session")
def other_node(ray_cluster):
    """A second node, on which Serve has a proxy and half of the replicas, until a test kills it."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    address = ray_cluster.get_runtime_context().gcs_address
    sizes = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 100_000_000}
    ports = {"node_manager_port": 0, "min_worker_port": 0, "max_worker_port": 0, "dashboard_agent_listen_port": None}
    params = RayParams(gcs_address=address, redis_address=address, include_log_monitor=False, **sizes, **ports)
    node = Node(params, head=False, shutdown_at_exit=False, spawn_reaper=False)
    yield node
    if node.any_processes_alive():
        kill_node(node)


def kill_node(node):
    """SIGKILL for all of its processes."""
    node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


@pytest.fixture(scope="session")
def rollout(ray_cluster, other_node, bundle):
    """The roll-out of the first bundle; `replace` makes another one of it."""
    from ray import serve as ray_serve
    from ray.dashboard.utils import ray_address_to_api_server_url

    address = ray_address_to_api_server_url(ray_cluster.get_runtime_context().gcs_address)
    port = free_ports(1)[0]
    yield Rollout(
        cluster=ServeCluster(address),
        config=build_config({"bundle": bundle, **OPTIONS}),
        url=f"http://{LOOPBACK}:{port}",
        gate=Gate(suites=()),
        canary=Canary(share=0, seconds=0),
        start_timeout_s=500,
        echo=lambda line: None,
    )
    ray_serve.shutdown()


@pytest.fixture(scope="session")
def server(rollout):
    """The cluster after that."""
    rollout.run(host=LOOPBACK, port=int(rollout.url.rpartition(":")[2]))
    return rollout


@pytest.fixture(scope="session")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def other_bundles(bundle, tmp_path_factory):
    """URIs of a bundle with other weights, and of one without a decoder, which only chats."""
    sealed = open_bundle(bundle)
    model = build_model(sealed.config, sealed.tokenizer)
    initialize(model, 1)
    tensors = dict(model.named_parameters())
    parts = tuple(part for part in sealed.config.parts if part != "decoder")
    chats = {name: value for name, value in tensors.items() if not name.startswith("decoder.")}
    uris = {}
    for name, config, kept in (
        ("other", sealed.config, tensors),
        ("chats", sealed.config.model_copy(update={"parts": parts}), chats),
    ):
        uris[name] = storage.normalize(str(tmp_path_factory.mktemp(name)))
        write_bundle(uris[name], config=config, tensors=kept, tokenizer=sealed.tokenizer, provenance={})
    return uris
