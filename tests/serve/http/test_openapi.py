"""The description of the API against the API: schemathesis sends what it allows and what it forbids."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve.http.routes.openapi import describe_api
from tests.serve.client import raw, serving

EXAMPLES = 5
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SPEC = describe_api()
OPERATIONS = {
    f"{operation.method} {operation.path}": operation
    for operation in (result.ok() for result in schemathesis.openapi.from_dict(SPEC).get_all_operations())
}


@pytest.fixture(scope="module")
def server(reference):
    with serving(reference) as server:
        yield server


# What has no body cannot be forbidden.
MODES = [(name, mode) for name in OPERATIONS for mode in GenerationMode if mode.is_positive or name.startswith("post")]


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_the_api_is_as_described(server, monkeypatch, name, mode):
    monkeypatch.setattr("serve.http.forms.chat.MAX_TOKENS", 4)  # long replies are not the point
    monkeypatch.setattr("serve.http.forms.responses.MAX_TOKENS", 4)
    monkeypatch.setattr("serve.http.forms.images.Sampling.steps", lambda self, default: 1)

    @given(case=OPERATIONS[name].as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,  # offline, and the same every time
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case):
        case.call_and_validate(base_url=server.url, checks=CHECKS)

    ask()


def test_every_route_is_described(server):
    """But for the page's own files, and links, which are made by the server."""
    listed = raw("GET", server.url + "/nothing").json["error"]["message"].partition("only ")[2].split(", ")
    named = {path.replace("{model_id}", "{model_id:path}") for path in SPEC["paths"]}
    assert set(listed) - named == {"/", "/v1/images/{name}/content"} and named <= set(listed)
