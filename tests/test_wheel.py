"""The wheel and the source distribution: they hold what the project holds, and the wheel works without a checkout."""

import ast
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pytest
import yaml

import blip3o
from blip3o import settings

ROOT = Path(__file__).parent.parent
PACKAGES = ("blip3o", "jobs", "serve", "cluster")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a command prints, run in a folder; it must succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=settings.child_environment(environment),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The project's files: tracked, or new and not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: the project's files cannot be told from others")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tracked, tmp_path_factory) -> Path:
    """A folder with the wheel and the source distribution, built by `make package`'s command from these files only."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    """The wheel's path."""
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder into which the wheel is installed; its dependencies are those of this environment."""
    target = tmp_path_factory.mktemp("installed")
    options = ("--no-deps", "--no-index", "--no-compile", "--quiet")
    run(sys.executable, "-m", "pip", "install", *options, "--target", target, wheel, cwd=target)
    return target


@pytest.fixture
def elsewhere(installed, tmp_path):
    """Runs a command in an empty folder, where the packages come from the wheel."""
    return lambda *command: run(*command, cwd=tmp_path, PYTHONPATH=str(installed), RAY_AUTH_MODE="disabled")


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel, tracked):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {name for name in tracked if name.split("/")[0] in PACKAGES}


def test_the_source_distribution_holds_the_whole_project(built, tracked):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert not tracked - held


def test_the_version_has_one_home(wheel, installed):
    metadata = Distribution.at(next(installed.glob("blip3o-*.dist-info")))
    assert metadata.version == blip3o.__version__ == wheel.name.split("-")[1]


def test_every_entry_point_names_a_module_of_the_wheel(installed):
    points = Distribution.at(next(installed.glob("blip3o-*.dist-info"))).entry_points
    assert {point.group for point in points} == {"console_scripts", "lmms_eval.models"}
    for point in points:
        file = installed.joinpath(*point.module.split(".")).with_suffix(".py")
        assert point.attr in {node.name for node in ast.parse(file.read_text()).body if hasattr(node, "name")}


def test_the_command_answers_from_another_folder(installed, elsewhere):
    assert "demo" in elsewhere(sys.executable, installed / "bin" / "blip3o", "--help")
    where = (
        "import blip3o, cluster, jobs, serve\nprint(blip3o.__file__, cluster.__file__, jobs.__file__, serve.__file__)"
    )
    assert all(Path(file).is_relative_to(installed) for file in elsewhere(sys.executable, "-c", where).split())


def test_shipped_recipes_are_found_from_another_folder(elsewhere, tmp_path):
    places = ("--set", f"run.storage={tmp_path}/runs", "--set", f"data.root={tmp_path}/data")
    printed = elsewhere(sys.executable, "-m", "jobs.train", "debug", "--dry-run", *places)
    assert "encoder" in {stage["stage"]["name"] for stage in yaml.safe_load_all(printed)}


def test_shipped_cluster_files_are_valid_from_another_folder(installed, elsewhere):
    files = sorted((installed / "cluster").rglob("*.yaml"))
    assert files
    elsewhere(sys.executable, "-m", "cluster.validate", *files)
