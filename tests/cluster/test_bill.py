"""What an image is made of, as a bill of materials."""

import json
import subprocess
import sys
from importlib.metadata import version

from tests.cluster.files import CLUSTER


def test_the_bill_lists_what_is_installed_with_its_licence():
    command = [sys.executable, "-m", "cluster.docker.bill"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CLUSTER.parent)
    assert done.returncode == 0, done.stderr
    components = {each["name"]: each for each in json.loads(done.stdout)["components"]}
    assert components["ray"]["version"] == version("ray")
    assert components["ray"]["purl"] == f"pkg:pypi/ray@{version('ray')}"
    stated = {name for name, each in components.items() if "licenses" in each}
    assert len(stated) > 0.8 * len(components)
    for name in components.keys() - stated:
        assert f"{name} {components[name]['version']} states no licence" in done.stderr
