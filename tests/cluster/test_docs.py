"""Files of `cluster/` that the documentation names are there, and its lines for clusters ask with the token."""

import re

import pytest

from tests.cluster.files import CLUSTER
from tests.docs_commands import PAGES

NAMED = re.compile(r"\bcluster/[\w./*-]*[\w*]")


ASKING = re.compile(r"\b(ray job submit|ray status|serve deploy --address)\b")
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_files_of_clusters_that_a_page_names_exist(page):
    missing = [name for name in NAMED.findall(page.read_text()) if not list(CLUSTER.parent.glob(name))]
    assert not missing


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_lines_that_ask_a_cluster_work_where_it_has_a_token(page):
    """By themselves, or after an `export` above them."""
    text = page.read_text()
    exported = text.find("export RAY_AUTH_MODE=token")
    for found in ASKING.finditer(text):
        line = text[text.rfind("\n", 0, found.start()) + 1 : found.start()]
        assert "RAY_AUTH_MODE=token" in line or 0 <= exported < found.start(), line + found.group()
