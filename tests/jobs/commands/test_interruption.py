"""Signals: a first one asks to save, a second one stops at once; all verbs end without a traceback. Real processes."""

import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from ray._private import auto_init_hook

from blip3o import settings
from jobs.commands.interruption import Stopped, StopRequest, run_apart

BOTH = [signal.SIGINT, signal.SIGTERM]


def kill(signum):
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", BOTH)
def test_the_first_signal_asks_and_the_second_stops_at_once(signum):
    before = signal.getsignal(signum)
    asked = []
    with pytest.raises(Stopped, match="at once") as stopped:
        with StopRequest(worthwhile=lambda: True, on_request=lambda: asked.append(1)) as request:
            kill(signum)
            assert (request.signum, asked) == (signum, [1])
            kill(signum)
    assert stopped.value.signum == signum
    assert signal.getsignal(signum) is before


def test_without_anything_to_save_the_first_stops_at_once():
    with pytest.raises(Stopped, match="before the first step"):
        with StopRequest(worthwhile=lambda: False, on_request=lambda: pytest.fail("nothing to save")):
            kill(signal.SIGINT)


def test_signals_arrive_while_the_work_is_done_apart():
    """The work ends by what the handler sets; in the main thread, nothing would."""
    released = threading.Event()
    with StopRequest(worthwhile=lambda: True, on_request=released.set) as request:
        threading.Timer(0, kill, [signal.SIGTERM]).start()
        assert run_apart(lambda: released.wait(60))
    assert request.signum == signal.SIGTERM


def test_what_the_work_apart_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        run_apart(lambda: 1 // 0)


def test_work_that_a_stop_leaves_behind_starts_no_new_ray():
    """Ray would start one at the next call of the thread, while the command ends."""
    assert not auto_init_hook.enable_auto_connect


WAITS = """
import sys, threading, typer
from jobs.common import entry_point
def command(word: str) -> None:
    print("waiting", flush=True)
    threading.Event().wait()
sys.exit(entry_point(sys.argv[1], command)(sys.argv[2:]))
"""


@pytest.mark.parametrize(("signum", "said", "code"), [(BOTH[0], "interrupted", 130), (BOTH[1], "terminated", 143)])
@pytest.mark.parametrize("verb", ["index", "describe"])
def test_a_verb_that_is_stopped_says_how_to_continue(verb, signum, said, code):
    command = [sys.executable, "-c", WAITS, verb, "a b"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=settings.child_environment({}), **pipes) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    continues = r"\nto continue: \S*blip3o index 'a b'" if verb == "index" else ""
    assert re.fullmatch(rf"{said}{continues}\n", errors)
