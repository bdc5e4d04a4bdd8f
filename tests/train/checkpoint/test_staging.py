"""Staging folders of processes that were killed are removed by the next one; those of running processes never are."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from blip3o import settings
from blip3o.errors import ConfigError
from blip3o.train.checkpoint import staging

# Prints its staging folder, and stays until its stdin ends; with `fork`, prints a child too, which stays with it.
PROCESS = """
import multiprocessing.util, os, sys
from pathlib import Path
from blip3o.train.checkpoint.staging import new_folder, own_folder
Path(new_folder("checkpoint"), "shard").write_bytes(bytes(2**20))
assert Path(multiprocessing.util.get_temp_dir()).parent == own_folder()
child = os.fork() if "fork" in sys.argv else 0
if child or "fork" not in sys.argv:
    print(own_folder(), child, flush=True)
sys.stdin.read()
"""


class Worker:
    """A process with a staging folder below `root`."""

    def __init__(self, root, *words):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, *words],
            env=settings.child_environment({"BLIP3O_STAGING_DIR": str(root)}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        folder, child = self.process.stdout.readline().split()
        self.folder, self.child = Path(os.fsdecode(folder)), int(child)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def root():
    """A folder with a path so short that sockets can be below."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def worker(root):
    started = []

    def start(*words):
        started.append(Worker(root, *words))
        return started[-1]

    yield start
    for it in started:
        it.process.kill()
        it.process.communicate()


def test_folders_of_killed_processes_go_at_the_next_start_and_those_of_others_stay(worker, root):
    living, killed, forked = worker(), worker(), worker("fork")
    killed.kill()
    forked.kill()
    (root / "blip3o-staging-file").touch()
    (root / "elsewhere").mkdir()
    (root / "blip3o-staging-link").symlink_to(root / "elsewhere")
    assert {path.name.partition("-")[0] for path in killed.folder.iterdir()} == {"checkpoint", "pymp"}
    worker()
    assert not killed.folder.exists()
    assert [path.stat().st_size for path in living.folder.glob("checkpoint-*/shard")] == [2**20]
    assert forked.folder.exists(), "its child still runs, and may use it"
    assert (root / "elsewhere").exists() and (root / "blip3o-staging-file").exists()
    os.kill(forked.child, signal.SIGKILL)
    forked.process.stdout.read()  # ends with the last process that holds it
    staging.remove_abandoned(root)
    assert living.folder.exists() and not forked.folder.exists()


def test_a_process_that_ends_its_work_removes_its_folder_once_nothing_is_on_its_way(root):
    command = """
from blip3o.train.checkpoint.staging import new_folder, release
folder = new_folder("checkpoint")
release()
assert folder.exists()
folder.rmdir()
new_folder("restore")
release()
assert not folder.parent.exists()
assert new_folder("checkpoint").exists(), "it may work again"
"""
    environment = settings.child_environment({"BLIP3O_STAGING_DIR": str(root)})
    subprocess.run([sys.executable, "-c", command], env=environment, check=True)
    assert len(list(root.iterdir())) == 1


def test_many_that_start_at_once_take_no_folder_of_each_other(root):
    command = f"{PROCESS}\nassert Path(own_folder()).exists()"
    environment = settings.child_environment({"BLIP3O_STAGING_DIR": str(root)})
    started = [
        subprocess.Popen([sys.executable, "-c", command], env=environment, stdin=subprocess.PIPE) for _ in range(6)
    ]
    for it in started:
        it.communicate()
    assert [it.returncode for it in started] == [0] * 6


@pytest.mark.parametrize("opened", [False, True])
def test_a_folder_that_was_taken_before_it_was_locked_is_made_again(tmp_path, monkeypatch, opened):
    """Another process that starts removes it before this one has opened it, or between opening and locking it."""
    lock, taken = staging._lock, []

    def late(folder):
        descriptor = lock(folder) if opened or taken else None
        if not taken:
            taken.append(folder)
            shutil.rmtree(folder)
        return descriptor or lock(folder)

    monkeypatch.setattr(staging, "_lock", late)
    folder = staging._locked(tmp_path)
    assert folder.exists() and folder != taken[0]


def test_a_disk_that_is_too_small_or_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("BLIP3O_STAGING_DIR", str(tmp_path / "nvme"))
    free = shutil.disk_usage(tmp_path).free
    staging.require_space(free / 2)
    with pytest.raises(
        ConfigError, match=rf"{re.escape(str(tmp_path))}/nvme has [\d.]+ GiB free, .* 9999.0 GiB: .*BLIP3O_STAGING_DIR"
    ):
        staging.require_space(9999 * 2**30)
    (tmp_path / "file").touch()
    monkeypatch.setenv("BLIP3O_STAGING_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(ConfigError, match=r"BLIP3O_STAGING_DIR=.*/file/below cannot be made \(Not a directory\)"):
        staging.staging_root()
