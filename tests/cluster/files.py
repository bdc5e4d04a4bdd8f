"""The shipped cluster files, and copies of them with one slip."""

import copy
from pathlib import Path

import yaml

from cluster import render

CLUSTER = Path(render.__file__).parent
VALUES = CLUSTER / "values.yaml"
SHIPPED = sorted(path for path in CLUSTER.rglob("*") if path.suffix in (".yaml", ".json") or path.name == "Dockerfile")


def load(name):
    """A shipped YAML or JSON file."""
    return yaml.safe_load((CLUSTER / name).read_text())


def changed(document, path, value):
    """A copy with one entry, named by a path with slashes or dots, set; `None` removes it."""
    copied = copy.deepcopy(document)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/" if "/" in path else ".")]
    place = copied
    for part in parents:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return copied
