"""The application on a real Ray Serve: routes, images, errors and cancellation equal those of an in-process engine.

The numbers of `/metrics` are those of all replicas and of all processes of the HTTP API.
"""

import http.client
import json
import os
import re
import signal
import time
from contextlib import contextmanager

import psutil
import pytest
from PIL import Image
from ray import serve as ray_serve

from blip3o.errors import BundleError, ConfigError, ServiceError
from cluster.ports import free_ports
from jobs.serve import start
from serve.deployments import configs
from serve.deployments.configs import application_name
from serve.deployments.options import GENERATOR
from tests.serve.client import assert_refusal, data_url, opened, question, raw
from tests.serve.deployments.conftest import NAME
from tests.serve.prometheus import parse

IMAGES = "/v1/images/generations"
PICTURE = Image.radial_gradient("L").convert("RGB")


def test_every_replica_gives_the_pipelines_image(client, reference):
    sampler = {"seed": 5, "num_inference_steps": 3, "guidance_scale": 2.0}
    asked = {"prompt": "a red circle", "n": 3, "extra_body": sampler}
    expected = reference.generate(["a red circle"] * 3, seed=[5, 6, 7], num_inference_steps=3, guidance_scale=2.0)
    for _ in range(6):
        reply = client.images.generate(**asked)
        assert [opened(item) for item in reply.data] == [image.tobytes() for image in expected]


def test_chat_sees_the_image(client, reference):
    messages = question("What colour is it?", data_url(PICTURE))
    reply = client.chat.completions.create(model="nano", messages=messages, max_tokens=5)
    assert reply.choices[0].message.content == reference.chat(messages, max_tokens=5)
    chunks = client.chat.completions.create(model="nano", messages=messages, max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == reply.choices[0].message.content


def test_page_health_and_model(server, client):
    assert raw("GET", server.url + "/health").json == {"status": "ok"}
    assert raw("GET", server.url + "/ready").json == {"status": "ready"}
    for path in ("/health", "/ready", "/v1/models", "/v1/models/"):
        assert raw("HEAD", server.url + path).status == raw("GET", server.url + path).status == 200
    assert "<html" in raw("GET", server.url + "/").text
    assert [model.id for model in client.models.list()] == ["nano"]


def test_refusals_cross_the_processes(server):
    images = server.url + "/v1/images/generations"
    answer = raw("POST", images, {"prompt": "a " * 500})
    assert_refusal(answer, 400, code="context_length_exceeded", param="prompt")
    assert re.search(r"takes \d+ tokens, this model reads \d+", answer.json["error"]["message"])
    assert_refusal(raw("POST", images, {"prompt": "x"}, {}), 400, code="unsupported_content_type")
    assert_refusal(raw("POST", images, {"prompt": "x", "n": 99}), 400, code="invalid_value", param="n")
    assert_refusal(raw("POST", images, {"prompt": "x", "model": "y"}), 404, code="model_not_found", param="model")
    assert_refusal(raw("GET", server.url + "/nothing"), 404)


def test_overload_is_refused_and_a_client_that_leaves_frees_its_place(server):
    """Clients that never read their replies fill both replicas; their going is noticed there, and makes room again."""
    replicas = ray_serve.get_deployment_handle(GENERATOR, configs.application_name(server.config))
    images = {"prompt": "a red circle", "n": 10, "num_inference_steps": 250}
    headers = {"content-type": "application/json"}
    leaving, url = [], server.url + IMAGES

    def ask_after_others():
        """Serve may have sent all of the others to one replica: then this request has the other one for itself."""
        for _ in range(6):
            connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
            connection.request("POST", IMAGES, json.dumps(images), headers)
            leaving.append(connection)
        return raw("POST", url, images)

    refused = _poll(ask_after_others, lambda answer: answer.status == 429)
    assert_refusal(refused, 429, code="queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    scrape = parse(raw("GET", server.url + "/metrics").text)  # full queues do not hold it up
    assert scrape.values("blip3o_replicas", state="silent") == [0]
    assert sum(scrape.values("blip3o_rows", state="waiting")) > 0
    assert sum(scrape.values("blip3o_rejected_total")) > 0
    for connection in leaving:
        connection.close()
    _poll(lambda: replicas.stats.remote().result(), lambda stats: stats.totals.get("cancelled"))
    _poll(lambda: raw("POST", url, images | {"num_inference_steps": 1}), lambda answer: answer.status == 200)


def _poll(ask, is_good, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = ask()
        if is_good(answer):
            return answer
    raise AssertionError(f"nothing good within {timeout_s} s, last: {answer}")


def test_errors_of_serving_are_one_line(server, bundle, tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        start(str(tmp_path), port=free_ports(1)[0])
    with pytest.raises(ConfigError, match="option widht: .*options: .*bundle, "):
        start(bundle, port=free_ports(1)[0], options={"widht": 3})
    with pytest.raises(ServiceError, match="this Ray serves blip3o, nano-.* already: add to it with `blip3o deploy"):
        start(bundle, port=free_ports(1)[0])
    with pytest.raises(ServiceError, match="is taken"):
        start(bundle, port=int(server.url.rpartition(":")[2]))


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
