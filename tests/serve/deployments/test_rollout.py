"""`blip3o deploy` on a real Serve under load: no request fails, a worse bundle never answers."""

import re
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import openai
import psutil
import pytest

from blip3o.errors import ServiceError
from jobs.deployment.rollout import Canary, resolved
from jobs.serve import build_config
from serve.deployments.configs import application_name, deployed_config, routing_table
from serve.deployments.options import GENERATOR
from tests.serve.client import raw
from tests.serve.deployments.conftest import NAME, kill_node
from tests.serve.prometheus import parse


class Seen:
    """The replies to clients that ask without a pause: how many by status, and the images of those with a seed."""

    def __init__(self):
        self.statuses, self.images = Counter(), set()

    def add(self, answer):
        """Counts a reply; one that was streamed has its images in events, and a failure too."""
        status = "error event" if '"error"' in answer.text else answer.status
        found = re.findall(r'"b64_json": ?"([^"]+)"', answer.text)
        self.images.add(tuple(sorted(found)))
        self.statuses[status] += 1


@contextmanager
def load(url, clients=3, **body):
    """Clients that ask for images without a pause; yields what they have seen so far."""
    seen, done = Seen(), threading.Event()

    def ask():
        while not done.is_set():
            seen.add(raw("POST", url + "/v1/images/generations", {"prompt": "x", "num_inference_steps": 1, **body}))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _served(rollout):
    return raw("GET", f"{rollout.url}/v1/models/{NAME}").json["bundle_sha256"]


def _run(rollout, lines, **changes):
    """A roll-out as the command line makes it: what is not given stays."""
    given = {"name": NAME, **changes.pop("given")}
    config = build_config(resolved(rollout.cluster, given))
    replace(rollout, config=config, echo=lines.append, **changes).run(host="127.0.0.1", port=1)
    return config


def _replicas(rollout, state="RUNNING"):
    """Names of the first bundle's replicas."""
    deployments = rollout.cluster.details()["applications"][application_name(rollout.config)]["deployments"]
    return {each["replica_id"] for each in deployments[GENERATOR]["replicas"] if each["state"] == state}


def _until(condition):
    """Waits up to four minutes: a replica starts slowly on two cores that also run other tests."""
    for _ in range(2400):
        if condition():
            return
        threading.Event().wait(0.1)
    raise AssertionError("not within four minutes")


def test_a_change_of_scaling_restarts_nothing_and_replicas_follow_the_images_in_work(server):
    before, lines = _replicas(server), []
    given = {"bundle": server.config.bundle, "min_replicas": 1, "max_replicas": 2, "target_rows": 4.0}
    with load(server.url, clients=1) as few:
        config = _run(server, lines, given=given)
        assert "only its scaling is changed" in lines[-1]
        assert application_name(config) == application_name(server.config)
        assert resolved(server.cluster, {"name": NAME})["min_replicas"] == 1
        _until(lambda: len(_replicas(server)) == 1)
    assert set(few.statuses) == {200}
    assert _replicas(server) < before
    with load(server.url, clients=1, n=10, num_inference_steps=100) as seen:  # one request at a time
        _until(lambda: len(_replicas(server)) == 2)
    assert set(seen.statuses) == {200}


def _processes(title: str) -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if title in " ".join(child.cmdline())]


def test_the_loss_of_a_replica_fails_no_request_and_changes_no_image(server):
    counted = parse(raw("GET", server.url + "/metrics").text)
    body = {"seed": 5, "n": 2, "num_inference_steps": 250, "response_format": "b64_json"}
    with load(server.url, 2, **body) as whole, load(server.url, 2, **body, stream=True) as streamed:
        _until(lambda: whole.statuses.total() > 1 and streamed.statuses.total() > 1)
        found: list[psutil.Process] = []
        # A replica's process is named after the method that runs in it, so not at every moment.
        _until(lambda: found.extend(_processes(f"{GENERATOR}.")) or bool(found))
        killed = _replica_of(server, found[0].pid)
        found[0].kill()
        before = whole.statuses.total(), streamed.statuses.total()
        _until(lambda: whole.statuses.total() > before[0] + 4 and streamed.statuses.total() > before[1] + 4)
    assert set(whole.statuses) == set(streamed.statuses) == {200}
    assert len(whole.images) == len(streamed.images) == 1 and whole.images == streamed.images
    _assert_no_counter_fell(counted, parse(raw("GET", server.url + "/metrics").text), killed)


def _replica_of(rollout, pid):
    deployments = rollout.cluster.details()["applications"][application_name(rollout.config)]["deployments"]
    [found] = [each["replica_id"] for each in deployments[GENERATOR]["replicas"] if each["pid"] == pid]
    return found


def _assert_no_counter_fell(before, after, killed):
    """The series of the killed replica end, and no name comes back. The autoscaler may take another one, too."""
    shared = before.counters.keys() & after.counters.keys()
    assert shared and all(after.counters[key] >= before.counters[key] for key in shared)
    lost, kept = [{each.labels["replica"] for each in scrape["blip3o_images_total"]} for scrape in (before, after)]
    assert killed in lost - kept


def test_a_bundle_that_fails_a_check_gets_no_traffic(server, other_bundles):
    before, lines = _served(server), []
    with load(server.url) as seen:
        with pytest.raises(ServiceError, match="cannot generate"):
            _run(server, lines, given={"bundle": other_bundles["chats"]})
        assert set(seen.statuses) == {200}
        assert _served(server) == before
        assert list(routing_table(deployed_config(server.cluster.details())).models) == [NAME]
    assert "rolled back" in lines[-1]


def test_a_roll_out_under_load_fails_no_request(server, other_bundles):
    before, old, lines = _served(server), application_name(server.config), []
    with load(server.url) as seen:
        config = _run(server, lines, given={"bundle": other_bundles["other"]}, canary=Canary(share=0.5, seconds=1.0))
        assert _served(server) != before
        answered = seen.statuses.total()
        _until(lambda: seen.statuses.total() > answered + 10)
    assert set(seen.statuses) == {200}
    applications = server.cluster.details()["applications"]
    assert applications[application_name(config)]["status"] == "RUNNING"
    assert applications.get(old, {}).get("status") in (None, "DELETING")


@contextmanager
def stock_load(url, clients=3):
    """Clients of OpenAI's library; yields what they have seen: replies and calls by status or kind of error."""
    replies, calls, done = Counter(), Counter(), threading.Event()
    http = openai.DefaultHttpxClient(event_hooks={"response": [lambda reply: replies.update([reply.status_code])]})
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=http)

    def ask():
        while not done.is_set():
            try:
                client.images.generate(prompt="x", extra_body={"num_inference_steps": 1})
                calls["done"] += 1
            except openai.APIError as error:
                calls[repr(error)] += 1

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield replies, calls
    finally:
        done.set()
        for thread in threads:
            thread.join()
        client.close()


def test_the_loss_of_a_proxy_and_of_a_node_is_nothing_that_a_client_does_not_try_again(server, other_node):
    def proxies():
        return [each["status"] for each in server.cluster.details()["proxies"].values()]

    def actors():
        return {each["actor_id"] for each in server.cluster.details()["proxies"].values()}

    def all_run():
        return {each["status"] for each in server.cluster.details()["applications"].values()} == {"RUNNING"}

    with stock_load(server.url) as (replies, calls):
        _until(lambda: proxies() == ["HEALTHY"] * 2 and calls["done"] > 5)
        before = actors()
        _processes("ray::ProxyActor")[0].kill()
        # The controller says HEALTHY of a dead proxy, too, until it has looked.
        _until(lambda: len(actors() - before) == 1 and proxies() == ["HEALTHY"] * 2)
        kill_node(other_node)
        _until(lambda: proxies() == ["HEALTHY"] and all_run())
        answered = calls["done"]
        _until(lambda: calls["done"] > answered + 5)
    assert set(calls) == {"done"}
    assert 404 not in replies
