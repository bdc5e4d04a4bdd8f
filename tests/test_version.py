"""What `blip3o --version` says is what is installed and checked out, and finding it out imports none of it."""

import subprocess
import sys
from importlib import metadata

import pytest

import blip3o
from blip3o import version
from jobs import cli
from tests.docs_commands import ROOT


def test_the_line_names_version_commit_torch_and_ray(capsys):
    assert cli.main(["--version"]) == 0
    said = capsys.readouterr().out
    assert said == f"{version.describe()}\n" and said.count("\n") == 1
    assert said.startswith(f"blip3o {blip3o.__version__}")
    for name in ("torch", "ray"):
        assert f"{name} {metadata.version(name)}" in said


def test_the_commit_is_that_of_the_checkout():
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if head.returncode:
        pytest.skip("not a git checkout: there is no commit to name")
    commit = version.commit()
    assert commit is not None and head.stdout.startswith(commit.removesuffix("-dirty"))
    assert f"(commit {commit})" in version.describe()


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(version, "SHOWN", ("torch", "no-such-package"))
    assert version.describe().endswith(", no-such-package (not installed)")


def test_it_imports_nothing_heavy():
    program = "import sys; from blip3o import version; version.describe(); print({'torch', 'ray'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
