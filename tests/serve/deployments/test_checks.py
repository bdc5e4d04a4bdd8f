"""What a bundle must pass before it gets traffic, with two models behind one face in this process."""

import pytest

from blip3o.bundle.reading import load_bundle
from blip3o.errors import ServiceError
from jobs.deployment.checks import Gate, smoke_test
from serve.api import build_models_api
from serve.engine.engine import Engine
from serve.engine.local import LocalBackend
from serve.http.config import HttpConfig
from tests.serve.client import Server, assert_refusal, raw


@pytest.fixture(scope="module")
def url(reference, other_bundles):
    engines = {"m": Engine(reference), "m@next": Engine(load_bundle(other_bundles["chats"]))}
    for engine in engines.values():
        engine.start()
    backends = {name: LocalBackend(engine) for name, engine in engines.items()}
    with Server(build_models_api(backends, HttpConfig())) as server:
        yield server.url
    for engine in engines.values():
        engine.close()


def test_a_request_goes_to_the_model_that_it_names(url):
    assert [model["id"] for model in raw("GET", url + "/v1/models").json["data"]] == ["m", "m@next"]
    images = url + "/v1/images/generations"
    for named in ({}, {"model": "m"}):
        assert raw("POST", images, {"prompt": "x", "num_inference_steps": 1, **named}).status == 200
    assert raw("POST", images, {"prompt": "x", "model": "m@next"}).status == 400  # it has no decoder
    assert_refusal(raw("POST", images, {"prompt": "x", "model": "m2"}), 404, code="model_not_found", param="model")


def test_the_smoke_test_asks_for_all_that_a_model_can(url):
    smoke_test(url, "m")
    smoke_test(url, "m@next")
    smoke_test(url, "m", instead_of="m@next")
    with pytest.raises(ServiceError, match="the new bundle cannot generate, the running one can"):
        smoke_test(url, "m@next", instead_of="m")
    with pytest.raises(ServiceError, match="answers 404"):
        smoke_test(url, "another")


def test_a_bundle_with_a_lower_score_is_refused(url, tmp_path):
    lines = []
    Gate(suites=("scenes",), limit=1, out=str(tmp_path)).check(url, "m", "m", lines.append)
    assert lines[0].startswith("scenes: ")
    better_by_two = Gate(suites=("scenes",), limit=1, out=str(tmp_path), tolerance=-2.0)
    with pytest.raises(ServiceError, match="the new bundle is worse on scenes"):
        better_by_two.check(url, "m", "m", lines.append)
