"""A worker's standby is a process with everything imported, and the next worker is that process."""

import os
import sys
import threading
import time

import psutil
import ray

from jobs.training.standby import HOOK, PRELOADED, start_standby, worker_runtime_env

PATIENCE_S = 60


class Probe:
    def look(self):
        return os.getpid(), os.getppid(), set(PRELOADED) - sys.modules.keys()

    def standby(self):
        return start_standby()


def started():
    return ray.remote(Probe).options(num_cpus=0, runtime_env=worker_runtime_env("cpu")).remote()


def wait_until(check):
    """The first true value of `check()`; fails after `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if value := check():
            return value
        threading.Event().wait(0.1)
    raise AssertionError(f"nothing in {PATIENCE_S} s")


def idle(raylet):
    """The idle processes of a node that were started for a training worker."""
    children = psutil.Process(raylet).children()
    return [it.pid for it in children if it.cmdline()[:1] == ["ray::IDLE"] and HOOK in it.environ()]


def test_the_next_worker_is_the_standby_of_the_last(ray_cluster):
    first = started()
    _, raylet, missing = ray.get(first.look.remote())
    assert not missing
    assert not idle(raylet)
    assert ray.get(first.standby.remote())
    (standby,) = wait_until(lambda: idle(raylet))
    ray.kill(first)
    second = started()
    pid, _, missing = ray.get(second.look.remote())
    assert pid == standby
    assert not missing
    ray.kill(second)
