"""`/metrics` of several replicas behind several processes of the HTTP API, on a real Serve."""

import os
import signal
from contextlib import contextmanager

import psutil
import pytest

from serve.deployments.configs import application_name
from serve.deployments.options import GENERATOR
from tests.serve.client import raw
from tests.serve.deployments.conftest import NAME
from tests.serve.prometheus import parse

IMAGES = "/v1/images/generations"


def scrape(server):
    return parse(raw("GET", server.url + "/metrics").text)


@pytest.fixture
def both(server):
    """A server of which both replicas and both processes of the HTTP API answer."""
    for _ in range(300):
        found = scrape(server)
        states = found.values("blip3o_replicas", state="ready"), found.values("blip3o_ingress_replicas", state="ready")
        if states == ([2], [2]):
            return server
    raise AssertionError(f"not ready: {states}")


def test_whichever_process_answers_the_numbers_are_those_of_all(both):
    """Requests go to both replicas, by both processes; any later scrape has all of them."""
    before = scrape(both)
    for seed in range(12):
        body = {"prompt": "x", "num_inference_steps": 1, "seed": seed}
        assert raw("POST", both.url + IMAGES, body).status == 200
    scrapes = [scrape(both) for _ in range(8)]
    for found in scrapes:
        labels = {"model": NAME, "application": application_name(both.config)}
        images = {each.labels["replica"]: each.value for each in found["blip3o_images_total"]}
        assert len(images) == 2 and sum(images.values()) == sum(before.values("blip3o_images_total")) + 12
        assert len(found.values("blip3o_images_total", **labels)) == 2
        route = {"route": IMAGES, "status": "200"}
        requests = found.values("blip3o_http_requests_total", **route)
        assert len(requests) == 2, "both processes have answered"
        assert sum(requests) == sum(before.values("blip3o_http_requests_total", **route)) + 12
    for earlier, later in zip(scrapes, scrapes[1:], strict=False):
        assert all(later.counters[key] >= value for key, value in earlier.counters.items())


@contextmanager
def stopped(process):
    """A process that hangs."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def test_a_replica_that_hangs_hides_no_other(both):
    children = psutil.Process(os.getpid()).children(recursive=True)
    replicas = [child for child in children if f"{GENERATOR}" in " ".join(child.cmdline())]
    with stopped(replicas[0]):
        found = scrape(both)
        assert raw("GET", both.url + "/ready").status == 200 and found.values("blip3o_ready") == [1]
    assert found.values("blip3o_replicas", state="ready") == found.values("blip3o_replicas", state="silent") == [1]
    assert len(found["blip3o_denoise_step_seconds_count"]) == 1
