"""The layout split on a real Serve, behind the same face as whole replicas: same bytes, and no request is lost."""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest
from ray import serve as ray_serve

from cluster.ports import LOOPBACK
from jobs.serve import build_config
from serve.config.options import STAGES
from serve.deployments.configs import application_name, deployed_config, routed, routing_table, running, with_table
from serve.deployments.options import GENERATOR, STAGE_NAMES
from tests.serve.client import opened, question, raw
from tests.serve.deployments.conftest import OPTIONS
from tests.serve.deployments.test_rollout import _until as until
from tests.serve.deployments.test_rollout import load
from tests.serve.prometheus import parse

NAME = "stages"
SCALE = {"min_replicas": 1, "max_replicas": 1, "num_cpus": 0.1, "coordinator_replicas": 1}
REQUESTS = [
    {"prompt": "a red circle", "n": 3, "seed": 5, "num_inference_steps": 3, "guidance_scale": 2.0},
    {"prompt": "a red circle", "n": 1, "seed": 5, "num_inference_steps": 1, "guidance_scale": 1.0},
    {"prompt": "It is green.", "n": 2, "seed": 9, "num_inference_steps": 4, "guidance_scale": 3.0},
    {"prompt": "a blue square", "n": 2, "seed": 1, "num_inference_steps": 2, "negative_prompt": "It is green."},
]


@pytest.fixture(scope="module")
def split(server):
    """The first bundle under another name, in stages; `blip3o deploy`'s own code puts it there."""
    given = {**OPTIONS, "bundle": server.config.bundle, "name": NAME, "layout": "split", **SCALE}
    rollout = replace(server, config=build_config(given))
    rollout.run(host=LOOPBACK, port=0)
    yield rollout
    rollout.cluster.apply(_routed(rollout, {}))


def _routed(rollout, shares):
    """The config of the cluster with these applications for the model."""
    current = deployed_config(rollout.cluster.details())
    return with_table(current, routed(routing_table(current), NAME, shares))


def _handle(rollout, stage):
    return ray_serve.get_deployment_handle(STAGE_NAMES[stage], application_name(rollout.config))


def _in_work(rollout):
    return {stage: _handle(rollout, stage).stats.remote().result().in_work for stage in STAGES}


def test_a_mixture_has_the_bytes_of_the_pipeline(split, client, reference):
    messages = question("What colour is it?", None)

    def ask(body):
        extra = {name: value for name, value in body.items() if name not in ("prompt", "n")}
        found = client.images.generate(model=NAME, prompt=body["prompt"], n=body["n"], extra_body=extra)
        return [opened(item) for item in found.data]

    with ThreadPoolExecutor(len(REQUESTS) + 1) as pool:
        images = pool.map(ask, REQUESTS * 2)
        chat = pool.submit(client.chat.completions.create, model=NAME, messages=messages, max_tokens=5)
        for body, found in zip(REQUESTS * 2, images, strict=True):
            options = {name: value for name, value in body.items() if name not in ("prompt", "n", "seed")}
            expected = reference.generate(body["prompt"], n=body["n"], seed=body["seed"], **options)
            assert found == [image.tobytes() for image in expected]
        assert chat.result().choices[0].message.content == reference.chat(messages, max_tokens=5)


def test_previews_come_before_their_image(split, client):
    events = client.images.generate(
        model=NAME,
        prompt="a red circle",
        stream=True,
        partial_images=2,
        extra_body={"num_inference_steps": 8, "seed": 1},
    )
    kinds = [event.type.rpartition(".")[2] for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"]


def test_a_client_that_leaves_frees_the_rows_of_every_stage(split):
    connections = []
    for _ in range(3):
        connection = http.client.HTTPConnection(split.url.removeprefix("http://"))
        body = {"model": NAME, "prompt": "a red circle", "n": 4, "num_inference_steps": 250}
        connection.request("POST", "/v1/images/generations", json.dumps(body), {"content-type": "application/json"})
        connections.append(connection)
    until(lambda: _in_work(split)["denoise"])
    for connection in connections:
        connection.close()
    until(lambda: not any(_in_work(split).values()))


def test_every_process_is_in_the_metrics_and_a_request_counts_once(split):
    body = {"model": NAME, "prompt": "a red circle", "n": 2, "num_inference_steps": 1}

    def counts():
        found = parse(raw("GET", split.url + "/metrics").text)
        names = ("blip3o_request_success_total", "blip3o_images_total", "blip3o_replicas")
        return {name: sum(found.values(name, model=NAME)) for name in names}

    before = counts()
    assert raw("POST", split.url + "/v1/images/generations", body).status == 200
    after = counts()
    assert after == {
        "blip3o_request_success_total": before["blip3o_request_success_total"] + 1,
        "blip3o_images_total": before["blip3o_images_total"] + 2,
        "blip3o_replicas": 1 + len(STAGES),
    }


def test_the_loss_of_a_stage_fails_no_request_and_changes_no_image(split):
    body = {"model": NAME, "seed": 5, "n": 2, "num_inference_steps": 100, "response_format": "b64_json"}
    with load(split.url, 2, **body) as whole, load(split.url, 1, **body, stream=True) as streamed:
        until(lambda: whole.statuses.total() > 1 and streamed.statuses.total() > 1)
        found: list[psutil.Process] = []
        until(lambda: found.extend(_processes(STAGE_NAMES["denoise"])) or bool(found))
        found[0].kill()
        before = whole.statuses.total(), streamed.statuses.total()
        until(lambda: whole.statuses.total() > before[0] + 4 and streamed.statuses.total() > before[1] + 2)
    assert set(whole.statuses) == set(streamed.statuses) == {200}
    assert len(whole.images) == len(streamed.images) == 1 and whole.images == streamed.images


def _processes(name):
    children = psutil.Process().children(recursive=True)
    return [child for child in children if f":{name}" in " ".join(child.cmdline())]


def test_a_bundle_in_stages_leaves_under_load_without_a_failed_request(server, split):
    """Serve ends its stages together, so its coordinators go first: when nobody asks them any more."""
    old, new = application_name(split.config), running(routing_table(_routed(split, {})), server.config.name)
    with load(split.url, model=NAME) as seen:
        until(lambda: seen.statuses.total() > 3)
        split._route(_routed(split, {old: 0.0, new: 1.0}))
        split._drop(deployed_config(split.cluster.details()), _routed(split, {new: 1.0}))
        answered = seen.statuses.total()
        until(lambda: seen.statuses.total() > answered + 3)
    assert set(seen.statuses) == {200}
    left = split.cluster.details()["applications"].get(old, {"status": "DELETING", "deployments": {}})
    assert left["status"] == "DELETING" and not left["deployments"].get(GENERATOR, {}).get("replicas")
