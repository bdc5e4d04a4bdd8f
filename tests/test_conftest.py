"""The suite's own fixtures: Ray's workers reach the store, and a process left behind fails the run."""

import signal
import subprocess
import sys

import psutil
import pytest

LEAVES_A_PROCESS = """
import pathlib, subprocess, sys
def test_leaves_a_process_behind():
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], stdout=-3, stderr=-3)
    pathlib.Path({pids!r}).write_text(str(child.pid))
"""


def test_workers_of_the_shared_ray_use_the_shared_store(s3, ray_cluster):
    from blip3o import storage

    def copy(source: str, target: str) -> bytes:
        from blip3o import storage

        storage.write_bytes(target, storage.read_bytes(source))
        return storage.read_bytes(source)

    storage.write_bytes(f"{s3}/conftest/a", b"through s3")
    remote = ray_cluster.remote(copy).options(num_cpus=0.1)
    assert ray_cluster.get(remote.remote(f"{s3}/conftest/a", f"{s3}/conftest/b")) == b"through s3"
    assert storage.read_bytes(f"{s3}/conftest/b") == b"through s3"
    storage.delete(f"{s3}/conftest")


@pytest.mark.parametrize("processes", [(), ("-n", "1")], ids=["alone", "shared"])
def test_a_process_left_behind_fails_the_run(tmp_path, processes):
    pids = tmp_path / "pids"
    (tmp_path / "test_it.py").write_text(LEAVES_A_PROCESS.format(pids=str(pids)))
    pytest = [sys.executable, "-m", "pytest", "-q", *processes, "-p", "tests.conftest", f"--rootdir={tmp_path}"]
    done = subprocess.run([*pytest, str(tmp_path)], capture_output=True, text=True, timeout=120)
    left = int(pids.read_text())
    psutil.Process(left).send_signal(signal.SIGKILL)
    assert "1 passed" in done.stdout
    assert done.returncode == 1
    assert f"processes left running by the tests: {left} python" in done.stdout
