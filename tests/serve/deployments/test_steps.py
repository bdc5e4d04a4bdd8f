"""The steps of a roll-out on a cluster in memory, which runs whatever it is told, or reports what a test says."""

import http.server
import json
import threading

import pytest
import yaml

from blip3o.errors import ServiceError
from cluster.ports import LOOPBACK
from cluster.validate import validate_serve
from jobs.commands.deploy import write_config
from jobs.deployment import rollout
from jobs.deployment.checks import Gate
from jobs.deployment.cluster import ServeCluster
from jobs.deployment.rollout import Canary, Rollout, resolved
from jobs.serve import build_config
from serve.deployments import configs
from tests.serve.deployments.test_configs import FILES


class Memory:
    """The part of `ServeCluster` that a roll-out needs."""

    def __init__(self, config, states):
        self.config, self.states, self.applied = config, states, []

    def details(self):
        """What is served."""
        each = {
            application["name"]: {
                "deployed_app_config": application,
                "status": self.states.get(application["name"], "RUNNING"),
                "deployments": {},
            }
            for application in self.config["applications"]
        }
        kept = {name: self.config[name] for name in ("proxy_location", "http_options")}
        return {**kept, "applications": each}

    def apply(self, config):
        """Serves it."""
        self.config = config
        self.applied.append(config)

    def wait(self, names, *, timeout_s):
        """All run at once."""


def _named(config, name):
    [found] = [each for each in config["applications"] if each["name"] == name]
    return found


@pytest.fixture
def memory():
    return Memory(yaml.safe_load(FILES["gpu"].read_text()), {})


def _run(memory, canary=Canary(share=0, seconds=0), **given):  # noqa: B008 - frozen
    config = build_config(resolved(memory, {"bundle": "s3://bucket/new", **given}))
    lines = []
    Rollout(
        cluster=memory,
        config=config,
        url="http://nowhere",
        gate=Gate(suites=()),
        canary=canary,
        start_timeout_s=1,
        echo=lines.append,
    ).run(host=LOOPBACK, port=1)
    return configs.application_name(config)


@pytest.fixture
def tests_passed(monkeypatch):
    passed = []
    monkeypatch.setattr(rollout, "smoke_test", lambda url, model, *, instead_of="": passed.append(instead_of))
    return passed


@pytest.mark.parametrize("error", [ServiceError("worse"), KeyError("choices"), SystemExit(1)])
def test_whatever_goes_wrong_all_is_as_it_was_also_the_face(memory, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(rollout, "smoke_test", fail)
    before = configs.deployed_config(memory.details())
    with pytest.raises(type(error)):
        _run(memory, request_timeout_s=60)
    assert memory.config == before


def test_a_bundle_that_fails_as_a_canary_loses_its_traffic_before_it_leaves(memory, monkeypatch):
    tests = iter([None, ServiceError("worse under load")])

    def fail_later(*args, **kwargs):
        if error := next(tests):
            raise error

    monkeypatch.setattr(rollout, "smoke_test", fail_later)
    before = configs.deployed_config(memory.details())
    [old] = configs.routing_table(before).models["blip3o"]
    with pytest.raises(ServiceError, match="under load"):
        _run(memory, Canary(share=0.5, seconds=0.01))
    *_, canary, without_traffic, last = memory.applied
    [_, new] = configs.routing_table(canary).models["blip3o"]
    assert new.share == 0.5
    assert _named(without_traffic, new.application)
    shares = {each.application: each.share for each in configs.routing_table(without_traffic).models["blip3o"]}
    assert shares == {old.application: 1, new.application: 0}
    assert last == before


def test_a_new_bundle_and_its_face_stay_on_the_nodes_that_the_file_names(memory, tests_passed):
    new = _run(memory)
    found = {each: memory.config for each in (new, configs.FACE)}
    placed = {name: _named(config, name)["deployments"][0]["ray_actor_options"] for name, config in found.items()}
    assert placed[new]["label_selector"] == {"ray-subcluster": "serve"} and placed[new]["num_gpus"] == 1
    assert placed[configs.FACE]["label_selector"] == {"ray-subcluster": "ingress"}


def test_a_bundle_that_does_not_run_can_be_replaced(memory, tests_passed):
    [old] = [each["name"] for each in memory.config["applications"] if each["name"] != configs.FACE]
    new = _run(memory)
    memory.states[new] = "DEPLOY_FAILED"
    last = _run(memory, bundle="s3://bucket/repaired")
    assert tests_passed == ["blip3o", ""]  # the second has nothing to be compared with
    assert {each["name"] for each in memory.config["applications"]} == {configs.FACE, last}
    assert old != new != last


def test_what_a_killed_roll_out_has_left_goes_and_other_applications_stay(memory, tests_passed):
    stray = configs.model_application(build_config({"bundle": "s3://bucket/killed"}))
    another = configs.model_application(build_config({"bundle": "s3://bucket/killed", "name": "another"}))
    foreign = {"name": "mine", "import_path": "mine:app", "route_prefix": "/mine"}
    for application in (stray, another, foreign):
        memory.config = configs.with_application(memory.config, application)
    new = _run(memory)
    assert {each["name"] for each in memory.config["applications"]} == {configs.FACE, new, another["name"], "mine"}


def test_what_is_served_can_be_written_for_a_manifest(memory, tests_passed, tmp_path):
    new, path = _run(memory), tmp_path / "serve.yaml"
    write_config(memory, path)
    written = yaml.safe_load(path.read_text())
    validate_serve(written)
    assert written == memory.config and _named(written, new)


class _Dashboard(http.server.BaseHTTPRequestHandler):
    """Says its version, and every second time what it serves."""

    asked = 0

    def do_GET(self):
        is_version = self.path.endswith("/version")
        type(self).asked += not is_version
        self.send_response(200 if is_version or self.asked % 2 == 0 else 503)
        self.end_headers()
        self.wfile.write(json.dumps({"version": "4", "ray_version": "2", "ray_commit": "", "served": 1}).encode())

    def log_message(self, *args):
        """Nothing."""


def test_a_dashboard_that_goes_away_is_an_error_of_the_service():
    with http.server.HTTPServer((LOOPBACK, 0), _Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cluster = ServeCluster(f"http://{LOOPBACK}:{server.server_port}", patience_s=0)
        with pytest.raises(ServiceError, match="does not say what it serves: Request failed with status code 503"):
            cluster.details()
        patient = ServeCluster(cluster.address)
        _Dashboard.asked = 0
        assert patient.details()["served"] == 1
        assert _Dashboard.asked == 2
        server.shutdown()
    with pytest.raises(ServiceError, match="does not say what it serves"):
        cluster.details()
    with pytest.raises(ServiceError, match="does not take the Serve config"):
        cluster.apply({})
