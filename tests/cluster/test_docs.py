"""Files of `cluster/` that the documentation names are there."""

import re

import pytest

from tests.cluster.files import CLUSTER
from tests.docs_commands import PAGES

NAMED = re.compile(r"\bcluster/[\w./*-]*[\w*]")


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_files_of_clusters_that_a_page_names_exist(page):
    missing = [name for name in NAMED.findall(page.read_text()) if not list(CLUSTER.parent.glob(name))]
    assert not missing
