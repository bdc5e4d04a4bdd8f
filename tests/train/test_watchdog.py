"""The watch speaks of a thread that stands still, with the place where it does, and of no other."""

import threading

from blip3o.train.watchdog import Watchdog

PATIENCE_S = 30


def stand_still(event):
    assert event.wait(PATIENCE_S)


def test_a_thread_that_stands_still_is_reported_with_its_place():
    told, reported = [], threading.Event()

    def tell(hang):
        told.append(hang)
        reported.set()

    with Watchdog(0.05, tell) as watch:
        watch.begin("data of step 6")
        watch.begin("sums of step 7")
        stand_still(reported)
    [hang] = told
    assert (hang.doing, hang.begun) == ("sums of step 7", 2)
    assert hang.seconds >= 0.05
    assert "stand_still(reported)" in hang.stack
    assert "at 'sums of step 7' for 0 s" in str(hang)


def test_a_thread_that_goes_on_is_not_reported():
    told = []
    with Watchdog(PATIENCE_S, told.append) as watch:
        for step in range(1000):
            watch.begin(f"step {step}")
    assert not told
