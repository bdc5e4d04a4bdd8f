"""One step ahead: the thread makes each value once, in order, at most one step early; errors belong to their step."""

import threading

import pytest

from blip3o.errors import DataError
from blip3o.train.ahead import THREAD_NAME, OneAhead, StartedEarly

PATIENCE_S = 30


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


def all_end():
    """Whether every such thread ends by itself."""
    for thread in threads():
        thread.join(PATIENCE_S)
    return not threads()


class Maker:
    """Makes ten times the step, and records which steps were asked for; an error where there is one."""

    def __init__(self, errors=None):
        self.made, self.errors, self.at = [], errors or {}, [threading.Event() for _ in range(9)]

    def __call__(self, step):
        self.made.append((step, threading.current_thread().name.startswith(THREAD_NAME)))
        self.at[step].set()
        if step in self.errors:
            raise self.errors[step]
        return 10 * step


def test_values_come_in_order_and_the_next_is_made_while_one_is_used():
    make = Maker()
    with OneAhead(make, range(2, 6)) as ahead:
        for step in range(2, 6):
            assert ahead.take(step) == 10 * step
            if step < 5:
                assert make.at[step + 1].wait(PATIENCE_S)  # it is made before anybody takes it
            assert [made for made, _ in make.made] == list(range(2, min(step + 1, 5) + 1))  # and none after it
    assert make.made == [(step, True) for step in range(2, 6)]
    assert not threads()


@pytest.mark.parametrize("error", [DataError("the stream broke"), ConnectionResetError("the store"), SystemExit(3)])
def test_an_error_is_raised_at_its_own_step_and_ends_the_thread(error):
    make = Maker({3: error})
    with pytest.raises(type(error)) as caught, OneAhead(make, range(9)) as ahead:
        assert [ahead.take(step) for step in range(3)] == [0, 10, 20]
        ahead.take(3)
    assert caught.value is error
    assert all_end()
    assert [step for step, _ in make.made] == [0, 1, 2, 3]


def test_an_error_of_the_caller_does_not_wait_for_a_source_that_hangs():
    released = threading.Event()

    def make(step):
        assert step == 0 or released.wait(PATIENCE_S)
        return step

    with pytest.raises(ValueError, match="bad step"), OneAhead(make, range(3)) as ahead:
        assert ahead.take(0) == 0
        raise ValueError("bad step")
    assert threads()  # it still waits for the source
    released.set()
    assert all_end()


def test_no_steps_are_no_calls():
    make = Maker()
    with OneAhead(make, range(4, 4)):
        pass
    assert not make.made
    assert not threads()


def test_the_first_value_of_a_stream_is_fetched_before_anyone_asks_for_it():
    fetched = threading.Event()

    def source():
        fetched.set()
        yield from range(3)

    early = StartedEarly(source())
    assert not fetched.is_set()
    early.start()
    early.start()
    assert fetched.wait(PATIENCE_S)
    assert list(early) == [0, 1, 2]
    assert all_end()


def test_a_stream_that_nobody_has_started_is_read_as_it_is():
    assert list(StartedEarly(iter("abc"))) == ["a", "b", "c"]
    assert list(StartedEarly(iter(()))) == []


def test_an_error_of_the_first_value_belongs_to_who_asks_for_it():
    def source():
        raise DataError("no such shard")
        yield

    early = StartedEarly(source())
    early.start()
    with pytest.raises(DataError, match="no such shard"):
        next(early)
