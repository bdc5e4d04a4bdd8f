"""The suite's own fixtures: Ray's workers reach the store, and a process left behind fails the run."""

import signal
import subprocess
import sys

import psutil

LEAVES_A_PROCESS = """
import subprocess, sys
def test_leaves_a_process_behind():
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], stdout=-3, stderr=-3)
    print("left", child.pid)
"""


def test_workers_of_the_shared_ray_use_the_shared_store(s3, ray_cluster):
    from blip3o.data import storage

    def copy(source: str, target: str) -> bytes:
        from blip3o.data import storage

        storage.write_bytes(target, storage.read_bytes(source))
        return storage.read_bytes(source)

    storage.write_bytes(f"{s3}/conftest/a", b"through s3")
    remote = ray_cluster.remote(copy).options(num_cpus=0.1)
    assert ray_cluster.get(remote.remote(f"{s3}/conftest/a", f"{s3}/conftest/b")) == b"through s3"
    assert storage.read_bytes(f"{s3}/conftest/b") == b"through s3"
    storage.delete(f"{s3}/conftest")


def test_a_process_left_behind_fails_the_run(tmp_path):
    (tmp_path / "test_it.py").write_text(LEAVES_A_PROCESS)
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-s",
        "-p",
        "tests.conftest",
        f"--rootdir={tmp_path}",
        str(tmp_path),
    ]
    done = subprocess.run(pytest, capture_output=True, text=True, timeout=120)
    left = int(done.stdout.split("left ")[1].split()[0])
    psutil.Process(left).send_signal(signal.SIGKILL)
    assert "1 passed" in done.stdout
    assert done.returncode == 1
    assert f"processes left running by the tests: {left} python" in done.stdout
