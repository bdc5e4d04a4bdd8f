"""The watchdog reports a thread that hangs, with the line where it hangs, and no other thread."""

import threading

from blip3o.train.ahead import OneAhead
from blip3o.train.watchdog import Watchdog

PATIENCE_S = 30


def stand_still(event):
    assert event.wait(PATIENCE_S)


def test_a_thread_that_hangs_is_reported_with_its_stack():
    hangs, reported = [], threading.Event()

    def on_hang(hang):
        hangs.append(hang)
        reported.set()

    with Watchdog(0.05, on_hang) as watchdog:
        watchdog.on_phase("data of step 6")
        watchdog.on_phase("sums of step 7")
        stand_still(reported)
    [hang] = hangs
    assert (hang.phase, hang.phases) == ("sums of step 7", 2)
    assert hang.seconds >= 0.05
    assert "stand_still(reported)" in hang.stack
    assert "at 'sums of step 7' for 0 s" in str(hang)


def test_a_hang_shows_where_the_thread_that_reads_ahead_is():
    hangs, reported = [], threading.Event()

    def on_hang(hang):
        hangs.append(hang)
        reported.set()

    def stream_stands_still(step):
        assert reported.wait(PATIENCE_S)
        return step

    with Watchdog(0.05, on_hang), OneAhead(stream_stands_still, range(1)) as ahead:
        assert ahead.take(0) == 0
    assert "assert reported.wait(PATIENCE_S)" in hangs[0].stack


def test_a_thread_that_keeps_entering_phases_is_not_reported():
    hangs = []
    with Watchdog(PATIENCE_S, hangs.append) as watchdog:
        for step in range(1000):
            watchdog.on_phase(f"step {step}")
    assert not hangs
