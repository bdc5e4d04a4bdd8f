"""What the whole suite shares: the environment, one real S3 store, one small Ray, and at the end a look for strays.

No test starts Ray or a store of its own except those that test the starting. The environment comes before imports: some
libraries read theirs when they are first imported. What the user's shell says of stores, keys, proxies, trackers and a
running Ray is removed: a test must not reach them, nor depend on them.
"""

import os
import signal
import socket
import sys

import psutil
import pytest

from blip3o import settings
from cluster.ports import LOOPBACK

_OF_THE_USER = (
    *("AWS_", "BLIP3O_", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_", "RAY_JOB_ID", "RAY_NAMESPACE"),
    *("HF_", "MLFLOW_", "WANDB_", "OPENAI_", "COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "PYTEST_ADDOPTS"),
    *(f"{scheme}_proxy" for scheme in ("all", "http", "https", "no")),
    *(f"{scheme}_PROXY" for scheme in ("ALL", "HTTP", "HTTPS", "NO")),
)


def _forget_the_users_environment() -> None:
    """Also the AWS files below HOME: a profile there names an endpoint and keys."""
    patch = pytest.MonkeyPatch()
    for prefix in _OF_THE_USER:
        for name, _ in settings.starting_with(prefix):
            patch.delenv(name)
    settings.override({"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull})
    if crds := settings.get("KUBERAY_CRDS"):
        settings.override({"KUBERAY_CRDS": os.path.abspath(crds)})  # some tests run the validator from another folder


_forget_the_users_environment()
# A shell that starts pytest in the background has it ignore Ctrl-C, and every process that a test starts would, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.override({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
settings.override({"OMP_NUM_THREADS": "1"})
settings.configure_ray()

BUCKET = "blip3o-test"


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """The base URI `s3://blip3o-test` of a fresh bucket in a real store that this process's environment points at."""
    from cluster.local_s3 import LocalS3

    with LocalS3(data_dir=tmp_path_factory.mktemp("s3")) as store:
        settings.override(store.environment)
        store.create_bucket(BUCKET)
        yield f"s3://{BUCKET}"


@pytest.fixture(scope="session")
def ray_cluster(s3):
    """A local Ray of 4 logical CPUs that this process is connected to; its workers see the store of `s3`.

    With a dashboard, without which every run of Ray Train ends 12 s later (see `jobs.common.join_ray`).
    """
    import ray

    ray.init("local", num_cpus=4, include_dashboard=True, log_to_driver=False, object_store_memory=300_000_000)
    yield ray
    ray.shutdown()


def pytest_addoption(parser):
    fuzzing = parser.getgroup("fuzz")
    fuzzing.addoption("--minutes", type=float, default=0, help="time for tests/field/test_fuzz.py; 0: a few rounds")
    fuzzing.addoption("--fuzz-seed", type=int, default=0, help="seed of its first round")


STRAYS = pytest.StashKey[list[str]]()


def pytest_configure(config):
    if sys.getfilesystemencoding() != "utf-8":
        raise pytest.UsageError(
            f"tests name files in many scripts, which {sys.getfilesystemencoding()} cannot: set PYTHONUTF8=1"
        )
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, 0))
        except OSError as error:
            raise pytest.UsageError(
                f"the tests' servers listen on {LOOPBACK}, which is not up here ({error.strerror}): give the loopback"
                f" interface that address: ip link set lo up; ip address add {LOOPBACK}/8 dev lo"
            ) from error
    config.stash[STRAYS] = []


def pytest_collection_modifyitems(items):
    """Tests of jobs come first: they are the longest, and what the last of several processes does should be short."""
    items.sort(key=lambda item: "jobs" not in item.path.parts)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """One of several processes that share the tests (pytest-xdist) has ended, and says what it has left behind."""
    node.config.stash[STRAYS] += getattr(node, "workeroutput", {}).get("strays", [])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Fails the run if a process that it started outlives it."""
    _, alive = psutil.wait_procs(_strays(), timeout=5)
    names = [f"{process.pid} {process.name()}" for process in alive]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["strays"] = names
    elif names := session.config.stash[STRAYS] + names:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        line = f"\nFAILED: processes left running by the tests: {', '.join(names)}"
        session.config.get_terminal_writer().line(line, red=True)


def _strays() -> list[psutil.Process]:
    """Children other than Python's resource tracker, which ends with its parent."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "resource_tracker" not in _command_line(child)]


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended, or is a zombie that its parent has yet to collect
        return ""
