"""`blip3o deploy` on a real Serve under load: no request fails, a worse bundle never answers."""

import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import pytest

from blip3o.errors import ServiceError
from jobs.deployment.rollout import Canary, resolved
from jobs.serve import build_config
from serve.deployments.configs import application_name, deployed_config, routing_table
from tests.serve.client import raw
from tests.serve.deployments.conftest import NAME


@contextmanager
def load(url, clients=3):
    """Clients that ask for images without a pause; yields the statuses and the bundles of their replies so far."""
    seen, done = Counter(), threading.Event()

    def ask():
        while not done.is_set():
            answer = raw("POST", url + "/v1/images/generations", {"prompt": "x", "num_inference_steps": 1})
            seen[answer.status] += 1

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


def _replicas(rollout, application):
    return rollout._replicas(application)


def test_a_change_of_scaling_restarts_nothing(server):
    before, lines = _replicas(server, application_name(server.config)), []
    config = _run(server, lines, given={"bundle": server.config.bundle, "max_replicas": 3, "target_rows": 2.0})
    assert "only its scaling is changed" in lines[-1]
    assert application_name(config) == application_name(server.config)
    assert _replicas(server, application_name(config)) == before
    assert resolved(server.cluster, {"name": NAME})["max_replicas"] == 3


def test_a_bundle_that_fails_a_check_gets_no_traffic(server, other_bundles):
    before, lines = _served(server), []
    with load(server.url) as seen:
        with pytest.raises(ServiceError, match="cannot generate"):
            _run(server, lines, given={"bundle": other_bundles["chats"], "max_replicas": 2, "min_replicas": 1})
        assert seen and set(seen) == {200}
        assert _served(server) == before
        assert list(routing_table(deployed_config(server.cluster.details())).models) == [NAME]
    assert "rolled back" in lines[-1]


def test_a_roll_out_under_load_fails_no_request(server, other_bundles):
    before, old, lines = _served(server), application_name(server.config), []
    with load(server.url) as seen:
        given = {"bundle": other_bundles["other"], "min_replicas": 1}
        config = _run(server, lines, given=given, canary=Canary(share=0.5, seconds=1.0))
        assert _served(server) != before
        answered = sum(seen.values())
        while sum(seen.values()) < answered + 10:
            threading.Event().wait(0.01)
    assert set(seen) == {200}
    applications = server.cluster.details()["applications"]
    assert applications[application_name(config)]["status"] == "RUNNING"
    assert applications.get(old, {}).get("status") in (None, "DELETING")
