"""`/docs` in a real browser: it loads nothing from elsewhere, reads well on a phone, and its examples are true."""

import json

import pytest

from serve.http.routes.examples import REPLIES, REQUESTS
from serve.http.routes.openapi import describe_api
from tests.serve.client import raw
from tests.serve.page.conftest import SCREENSHOTS


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(browser, server, request):
    """The page; the test fails if it asks for anything else, or if the browser complains."""
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height})
    page, asked, said = context.new_page(), [], []
    page.on("request", lambda each: asked.append(each.url))
    page.on("console", lambda each: said.append(each.text))
    page.goto(server.url + "/docs")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"docs-{width}.png")
    yield page
    context.close()
    assert (asked, said) == ([server.url + "/docs"], [])


def test_the_page_has_every_route_and_field_and_fits(page):
    spec = describe_api()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing sticks out"
    links = page.locator("nav a")
    assert links.count() == len(spec["paths"])
    for summary in page.locator("summary").all():
        summary.click()
    for name, schema in spec["components"]["schemas"].items():
        for field in schema["properties"]:
            assert page.locator("td:first-child code", has_text=field).first.is_visible(), (name, field)
    links.first.click()
    assert page.locator("h2").first.inner_text() == "POST /v1/images/generations"
    page.get_by_role("link", name="Message", exact=True).first.click()
    assert page.locator("h3#Message").is_visible()


@pytest.mark.parametrize("path", REQUESTS)
def test_an_example_is_what_the_server_says(server, path):
    reply = raw("POST", server.url + path, REQUESTS[path])
    assert reply.status == 200
    assert not set(_paths(REPLIES[path])) - set(_paths(reply.json)), "the example names what is not there"
    operation = describe_api()["paths"][path]["post"]
    assert json.dumps(REQUESTS[path]) in json.dumps(operation)


def _paths(value, at=""):
    """Where a JSON value has values, and of which type: whole numbers and others are numbers."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _paths(each, f"{at}.{name}")
    elif isinstance(value, list):
        for each in value:
            yield from _paths(each, f"{at}[]")
    else:
        yield at, "number" if type(value) in (int, float) else type(value).__name__
