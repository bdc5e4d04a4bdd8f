"""`make test-fast` (`pytest -p tests.fast`): the tests that start no process, for the inner loop.

No list of tests is kept. A test that starts a process is skipped at that moment, with the command as the reason. To
save time, what can be known before is not even collected: files that import something that starts processes, themselves
or through a helper of `tests`, and tests whose fixtures start some.
"""

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STARTING_FIXTURES = {"browser", "ray_cluster", "s3"}  # a test's closure has them whoever asks for them
STARTING_MODULES = (  # with what is below them
    *("benchmarks", "blip3o.data.sets.npm", "blip3o.data.stream", "cluster", "deepspeed", "jobs"),
    *("concurrent.futures.ProcessPoolExecutor", "multiprocessing", "ray", "subprocess", "torch.multiprocessing"),
)
STARTING_EVENTS = {"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"}  # Python's audit events
ASKING = {"lsb_release", "uname"}  # milliseconds: by these, libraries learn which system this is

_in_a_test = False


def pytest_configure():
    """Looks at every process that this one is about to start. Nothing removes an audit hook."""
    sys.addaudithook(_skip)


def _skip(event: str, arguments: tuple) -> None:
    if _in_a_test and event in STARTING_EVENTS:
        program = str(arguments[0]) if arguments else ""
        if Path(program).name not in ASKING:
            pytest.skip(f"starts a process: {event} {program}")


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
def pytest_runtest_protocol():
    """From here on, processes would be a test's or its fixtures'."""
    global _in_a_test
    _in_a_test = True
    try:
        return (yield)
    finally:
        _in_a_test = False


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
