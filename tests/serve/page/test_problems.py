"""What the page says when the server refuses, is busy, wants a key, or is gone; and what a model cannot do."""

import json

import pytest
from PIL import Image

from serve.api import build_api
from serve.engine.engine import Engine
from serve.protocol import BusyError, UnavailableError
from tests.serve.client import Server, serving
from tests.serve.page.page import alert, ask, cards, generate, wait_for_images


class Failing:
    """A backend whose model is there, and that fails on every request."""

    def __init__(self, error, described):
        self._error, self._described = error, described

    async def describe(self):
        return self._described

    async def stream_images(self, _):
        raise self._error
        yield

    stream_chat = stream_images


def test_a_busy_server_is_tried_again(open_page, reference):
    with Server(build_api(Failing(BusyError(7), Engine(reference).describe()), "nano")) as server:
        page = open_page(server)
        generate(page, "a red circle")
        page.get_by_role("button", name="Try again").wait_for()
        assert "The server is busy. Try again in 7 s." in alert(page) and "Request req_" in alert(page)
        assert cards(page).count() == 0
        with page.expect_request("**/v1/images/generations") as again:
            page.get_by_role("button", name="Try again").click()
        assert again.value.post_data_json["prompt"] == "a red circle"


def test_a_question_that_fails_goes_back_to_its_field(open_page, reference):
    with Server(build_api(Failing(UnavailableError("it starts"), Engine(reference).describe()), "nano")) as server:
        page = open_page(server)
        page.get_by_label("Question").fill("What is it?")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Try again").wait_for()
        assert "The model is not ready: it starts" in alert(page)
        assert page.get_by_label("Question").input_value() == "What is it?"
        assert page.get_by_role("log").inner_text() == ""


def test_the_field_at_fault_is_named_and_focused(page):
    generate(page, "a " * 500, Images=1)
    page.locator("[aria-invalid=true]").wait_for()
    prompt = page.get_by_label("Prompt", exact=True)
    assert prompt.get_attribute("aria-invalid") == "true" and "tokens" in alert(page)
    assert prompt.evaluate("field => field === document.activeElement")
    generate(page, "a red circle", Images=1, Steps=2)
    wait_for_images(page, 1)
    assert prompt.get_attribute("aria-invalid") is None
    assert page.get_by_role("alert").filter(visible=True).count() == 0


def test_a_server_that_has_gone_is_told(open_page, reference):
    with serving(reference) as server:
        page = open_page(server)
    generate(page, "a red circle", Images=1)
    page.get_by_role("button", name="Try again").wait_for()
    assert "The server does not answer" in alert(page)


def test_a_key_is_asked_for_sent_and_forgotten_with_the_tab(open_page, talking, monkeypatch):
    monkeypatch.setenv("BLIP3O_API_KEYS", "ann:secret")
    with serving(talking) as server:
        page = open_page(server)
        assert "asks for an API key" in page.get_by_role("status").first.inner_text()
        field = page.get_by_role("textbox", name="API key")
        assert field.evaluate("field => field === document.activeElement")
        field.fill("secret")
        page.keyboard.press("Enter")
        page.get_by_text("32 × 32 pixels").wait_for()
        generate(page, "a red circle", Images=1, Steps=2)
        wait_for_images(page, 1)
        assert ask(page, "hi")
        page.reload()
        page.get_by_text("32 × 32 pixels").wait_for()  # the same tab
        kept = page.evaluate("[Object.values(sessionStorage), Object.values(localStorage), document.cookie]")
        assert kept == [["secret"], [], ""]
        other = page.context.new_page()
        other.goto(server.url)
        other.get_by_text("asks for an API key").first.wait_for()


def test_editing_is_offered_by_models_that_can_and_nowhere_else(page, server, tmp_path):
    """No bundle can so far: the model's entry is changed on its way, and the real route says what it was sent."""
    assert page.get_by_role("group", name="Start from a picture").is_hidden()

    def change(route):
        reply = route.fetch()
        [entry] = reply.json()["data"]
        body = {"object": "list", "data": [entry | {"abilities": ["chat", "edit", "generate", "variation"]}]}
        route.fulfill(response=reply, body=json.dumps(body))

    page.route("**/v1/models", change)
    page.reload()
    source = page.get_by_role("group", name="Start from a picture")
    source.get_by_label("Edit a picture by the prompt").check()
    generate(page, "make it blue", Images=1)
    assert "Choose or draw a picture first." in alert(page)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    source.get_by_label("Choose a picture").set_input_files(tmp_path / "red.png")
    source.get_by_role("img").wait_for()
    for mode, path, refusal in (
        ("Edit a picture by the prompt", "edits", "this model cannot edit images"),
        ("Vary a picture", "variations", "this model cannot vary images"),
    ):
        source.get_by_label(mode).check()
        with page.expect_response(f"**/v1/images/{path}") as response:
            page.get_by_role("button", name="Generate").click()
        assert response.value.status == 400
        page.get_by_text(refusal).wait_for()
    assert page.get_by_role("button", name="Generate").is_enabled()


@pytest.mark.parametrize("path", ["/page/main.js", "/page/style.css", "/"])
def test_the_policy_lets_nothing_else_in(server, path):
    from tests.serve.client import raw

    answer = raw("GET", server.url + path)
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == "'none'" and rules["frame-ancestors"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["require-trusted-types-for"] == "'script'" and "unsafe" not in str(rules)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "http://" not in answer.text and "https://" not in answer.text  # nothing comes from elsewhere
    assert raw("GET", server.url + "/page/routes.py").status == 404
