"""`make test-fast` (`pytest -p tests.fast`): the tests that start no process, for the inner loop.

A file is left out if it, or a helper of `tests` that it imports, imports something that starts processes. A test is
left out if it uses a fixture that does. No list of tests is kept: a new one is fast until it needs one of these. A test
that starts a process all the same fails here, so that the rule stays true.
"""

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STARTING_FIXTURES = {"ray_cluster", "s3"}  # of tests/conftest.py; a test's closure has them whoever asks for them
STARTING_MODULES = (  # with what is below them
    *("benchmarks", "blip3o.data.sets.npm", "blip3o.data.stream", "cluster", "deepspeed", "jobs"),
    *("concurrent.futures.ProcessPoolExecutor", "multiprocessing", "ray", "subprocess", "torch.multiprocessing"),
)
STARTING_EVENTS = {"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"}  # Python's audit events

_started: list[str] = []


def pytest_configure():
    """Notes every process that this one starts."""
    sys.addaudithook(_note)


def _note(event: str, arguments: tuple) -> None:
    if event in STARTING_EVENTS:
        _started.append(f"{event} {arguments[0] if arguments else ''}".strip())


def pytest_ignore_collect(collection_path: Path):
    """Leaves out files that import what starts processes, so that their imports are not paid for either."""
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if is_test and imports_starting(collection_path) else None


def pytest_collection_modifyitems(config, items):
    """Leaves out tests whose fixtures start processes."""
    starting = [item for item in items if STARTING_FIXTURES & set(item.fixturenames)]
    config.hook.pytest_deselected(items=starting)
    items[:] = [item for item in items if not STARTING_FIXTURES & set(item.fixturenames)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fails a test that started a process, in its fixtures or itself."""
    result = yield
    if _started:
        pytest.fail(f"starts a process ({_started[0]}): let its file import what starts it, as tests/fast.py says")
    return result


def pytest_runtest_logfinish():
    """The next test begins with nothing started."""
    _started.clear()


@functools.cache
def imports_starting(file: Path) -> bool:
    """Whether a file of the tests imports, also through helpers of the tests, a module that starts processes."""
    for name in imported(file):
        if f"{name}.".startswith(tuple(f"{module}." for module in STARTING_MODULES)):
            return True
        if name.startswith("tests.") and any(imports_starting(helper) for helper in _files(name)):
            return True
    return False


def imported(file: Path) -> Iterator[str]:
    """The dotted names that a file imports, in functions too; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(name: str) -> list[Path]:
    """The file of `tests.a.b`, where the last part may be a name in it."""
    parts = name.split(".")
    candidates = [ROOT.joinpath(*parts).with_suffix(".py"), ROOT.joinpath(*parts[:-1]).with_suffix(".py")]
    return [file for file in candidates if file.is_file()]
