"""A headless Chromium, driven by Playwright, and pages of it that must not break their own policy."""

import shutil
from pathlib import Path

import pytest

from tests.serve.client import serving

CHROMIUM = "chromium"  # Debian's; `.ci/run` installs it
SCREENSHOTS = Path(__file__).parent.parent.parent.parent / "build" / "screenshots"


@pytest.fixture(scope="session")
def browser():
    """One browser for all tests."""
    program = shutil.which(CHROMIUM)
    if program is None:
        pytest.skip(f"{CHROMIUM} is not installed: apt-get install {CHROMIUM}")
    playwright = pytest.importorskip("playwright.sync_api", reason="the driver of the browser, of the extra dev")
    with playwright.sync_playwright() as driver:
        # Containers let no user make the namespaces of its sandbox; it opens nothing but our own server.
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(talking):
    """A server of that pipeline."""
    with serving(talking) as server:
        yield server


@pytest.fixture
def open_page(browser):
    """Opens the page of a server in a fresh profile; `options` are those of a context: width, colours, touch.

    Fails the test if a script of the page failed, or something was refused by the page's policy.
    """
    contexts, problems = [], []

    def open_page(server, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(60_000)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.on("weberror", lambda error: problems.append(str(error.error)))
        page = context.new_page()
        page.on("console", lambda said: problems.append(said.text) if _is_problem(said) else None)
        page.goto(server.url)
        page.get_by_role("status").filter(has_not_text="connecting").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


def _is_problem(said):
    """Whether the console has an error; that a request was refused is no error of the page."""
    return said.type == "error" and not said.text.startswith("Failed to load resource")


@pytest.fixture
def page(open_page, server):
    """The page of the server."""
    return open_page(server)


@pytest.fixture(scope="session")
def keep():
    """Keeps a screenshot of a page under a name, for people to look at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
