"""`blip3o store`: the store that a demo left, started again, with what a client must set."""

import shlex
import signal
import subprocess
import sys

import boto3
import pytest

from cluster import local_s3
from cluster.local_s3 import LOCK
from cluster.ports import LOOPBACK, free_ports
from jobs import store
from jobs.commands.demo_store import STORE, find_store


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder as a demo leaves it; that its objects survive is tested where the store is."""
    folder = tmp_path_factory.mktemp("demo") / "it's a demo"
    (folder / STORE).mkdir(parents=True)
    (folder / STORE / LOCK).touch()
    return folder


@pytest.fixture(scope="module")
def served(demo):
    """(process, port, what it printed up to the last comment) of `blip3o store` with a port that was asked for."""
    [port] = free_ports(1)
    command = [sys.executable, "-m", "jobs.store", str(demo), "--port", str(port)]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        lines = [process.stdout.readline()]
        while lines[-1] and not lines[-1].startswith("# or:"):
            lines.append(process.stdout.readline())
        yield process, port, "".join(lines)
        process.kill()


def test_what_it_prints_is_all_that_a_client_must_set(served, demo, monkeypatch):
    _, port, printed = served
    url = f"http://{LOOPBACK}:{port}"
    assert printed.startswith(f"# the S3 store in {demo} is up until Ctrl-C")
    settings = [words for line in printed.splitlines() if (words := shlex.split(line, comments=True))]
    assert {words[0] for words in settings} == {"export"}
    for assignment in (word for words in settings for word in words[1:]):
        monkeypatch.setenv(*assignment.split("=", 1))
    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket="mine")
    assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["mine"]
    assert client.meta.endpoint_url == url


def test_what_cannot_be_started_is_told_in_one_line(served, demo, tmp_path, capsys, monkeypatch):
    process, port, _ = served
    url = f"http://{LOOPBACK}:{port}"
    monkeypatch.setattr(local_s3, "_LOCK_WAIT_S", 0.1)
    for arguments, fault in (
        ([str(tmp_path)], f"{tmp_path} holds no store: give the folder of a demo (`blip3o demo --out {tmp_path}`"),
        ([str(demo)], f"{demo / STORE} is in use by another local S3 store (process {process.pid}, at {url})"),
        ([str(demo), "--port", str(port)], f"port {port} of 127.0.0.1 is taken: give another one with --port"),
        ([str(demo), "--port", "0"], "port 0 is not between 1 and 65535: give another one with --port"),
    ):
        assert store.main(arguments) == 1
        said = capsys.readouterr()
        assert said.err.startswith(f"error: {fault}") and said.err.count("\n") == 1 and not said.out


def test_the_data_may_be_named_too(demo):
    assert find_store(demo) == find_store(demo / STORE) == demo / STORE


def test_ctrl_c_stops_it_without_a_traceback(served, demo):
    process, _, _ = served
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "# stopping\n") and "Traceback" not in err
    local_s3._lock(demo / STORE / LOCK).close()  # the server has ended, too
