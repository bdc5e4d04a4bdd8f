"""A managed process is ended with all it started, in good time, and its death is reported with its last words."""

import subprocess
import sys

import psutil
import pytest

from blip3o.errors import ServiceError
from cluster import process as module
from cluster.process import ManagedProcess
from tests.cluster.waiting import wait_for_end

STUBBORN_TREE = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"])
print(child.pid, flush=True)
signal.pause()
"""


def _python(tmp_path, code):
    process = ManagedProcess(name="a test service", log=tmp_path / "log")
    process.start([sys.executable, "-c", code], {"GREETING": "hello"})
    return process


def test_environment_and_log_reach_the_child(tmp_path):
    process = _python(tmp_path, "import os, signal; print(os.environ['GREETING'], flush=True); signal.pause()")
    process.wait_until(lambda: process.log_tail() == "hello", timeout_s=20)
    with pytest.raises(ServiceError, match="already running"):
        process.start([sys.executable], {})
    process.stop()
    process.stop()
    with pytest.raises(ServiceError, match="not running"):
        _ = process.pid


@pytest.mark.parametrize(
    "waiting", [ManagedProcess.wait, lambda it: it.wait_until(lambda: False, timeout_s=20)], ids=["wait", "wait_until"]
)
def test_death_is_reported_with_code_and_last_lines(tmp_path, waiting):
    process = _python(tmp_path, "import sys; print('one'); print('two'); sys.exit(7)")
    with pytest.raises(ServiceError, match=r"a test service ended with code 7; its log .* ends: one \| two"):
        waiting(process)
    process.stop()


def test_silence_is_reported_and_ended(tmp_path):
    process = _python(tmp_path, "import signal; signal.pause()")
    child = psutil.Process(process.pid)
    with pytest.raises(ServiceError, match="did not answer within 0 s"):
        process.wait_until(lambda: False, timeout_s=0.3)
    assert not child.is_running()


def test_descendants_that_ignore_the_polite_signal_are_killed(tmp_path):
    process = _python(tmp_path, STUBBORN_TREE)
    process.wait_until(lambda: "ready" in process.log_tail(), timeout_s=20)
    grandchild = psutil.Process(int(process.log_tail().split(" | ")[0]))
    process.stop(grace_s=0.5)
    wait_for_end(grandchild)


def test_a_dead_parent_is_noticed_before_the_command_runs(tmp_path):
    guarded = [sys.executable, "-IS", str(module._GUARD), "1", sys.executable, "-c", "print('ran')"]
    refused = subprocess.run(guarded, capture_output=True, timeout=20)
    assert refused.returncode == 1 and b"process 1 died" in refused.stderr and not refused.stdout
