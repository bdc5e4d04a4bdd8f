"""A worker's standby is a process with everything imported, and the next worker is that process."""

import os
import sys

import psutil
import ray

from jobs.training.standby import HOOK, PRELOADED, start_standby, worker_runtime_env
from tests.cluster.waiting import wait_until


class Probe:
    def look(self):
        return os.getpid(), os.getppid(), set(PRELOADED) - sys.modules.keys()

    def standby(self):
        return start_standby()


def started():
    return ray.remote(Probe).options(num_cpus=0, runtime_env=worker_runtime_env("cpu")).remote()


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
    wait_until(lambda: idle(raylet))
    (standby,) = idle(raylet)
    ray.kill(first)
    second = started()
    pid, _, missing = ray.get(second.look.remote())
    assert pid == standby
    assert not missing
    ray.kill(second)
