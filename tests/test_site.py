"""The documentation as a site: everything that it needs comes with it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from blip3o import settings

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the built site."""
    out = tmp_path_factory.mktemp("site")
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out))
    environment = settings.child_environment({"NO_MKDOCS_2_WARNING": "1"})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_no_page_loads_anything_from_another_host(site):
    elsewhere = r"=\"?(?:https?:)?//"
    loads = re.compile(rf"<(?:script|img|iframe|source)\b[^>]*\bsrc{elsewhere}|<link\b[^>]*\bhref{elsewhere}")
    pages = {page.name: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert len(pages) > 15
    assert not {name: loads.findall(text) for name, text in pages.items() if loads.search(text)}


def test_pages_and_the_python_api_can_be_searched(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    places = {entry["location"] for entry in index["docs"]}
    assert {"serving.html", "contributing.html#add-an-objective", "api.html#blip3o.load"} <= places
