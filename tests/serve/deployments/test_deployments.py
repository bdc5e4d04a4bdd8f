"""The application on a real Ray Serve: routes, images, errors and cancellation equal those of an in-process engine."""

import http.client
import json
import re
import time

import pytest
from PIL import Image
from ray import serve as ray_serve

from blip3o.errors import BundleError, ConfigError, ServiceError
from cluster.ports import free_ports
from jobs.serve import start
from serve.deployments import configs
from serve.deployments.options import GENERATOR
from tests.serve.client import assert_refusal, data_url, opened, question, raw
from tests.serve.prometheus import parse

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
    leaving = []
    for _ in range(6):
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
        connection.request("POST", "/v1/images/generations", json.dumps(images), headers)
        leaving.append(connection)
    url = server.url + "/v1/images/generations"
    refused = _poll(lambda: raw("POST", url, images), lambda answer: answer.status == 429)
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
