"""Waiting for processes that are not our children."""

import psutil


def wait_for_end(process: psutil.Process, *, timeout_s: float = 30.0) -> None:
    """Returns when the process is gone, or is a zombie that its new parent does not reap; fails after `timeout_s`."""
    for _ in range(int(timeout_s / 0.1)):
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return
        psutil.wait_procs([process], timeout=0.1)
    raise AssertionError(f"process {process.pid} still runs")
