"""Admission is first come, first served, steps are counted exactly, and a row in a slot never moves or waits."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.scheduler import ChatTicket, Row, Schedule, next_chats

REQUESTS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), max_size=8)


def _submit(schedule, number, images, steps):
    return schedule.submit(number, images=images, steps=steps) if images <= schedule.free_capacity else schedule


def _turn(schedule):
    advanced = schedule.admit().advance()
    return advanced.release(advanced.finished)


def test_rows_of_different_step_counts_share_the_batch():
    schedule = Schedule.empty(batch_size=2, max_waiting=4)
    schedule = schedule.submit(7, images=1, steps=3).submit(8, images=2, steps=1).admit()
    assert schedule.slots == (Row(request=7, image=0, steps=3), Row(request=8, image=0, steps=1))
    assert schedule.waiting == (Row(request=8, image=1, steps=1),)
    schedule = schedule.advance()
    assert list(schedule.finished) == [1]
    schedule = schedule.release([1]).admit()
    assert schedule.slots == (Row(request=7, image=0, steps=3, done=1), Row(request=8, image=1, steps=1))
    assert list(schedule.unstarted) == [1]


def test_room_counts_free_slots_and_free_places():
    schedule = Schedule.empty(batch_size=2, max_waiting=3)
    assert schedule.free_capacity == 5
    schedule = schedule.submit(0, images=4, steps=1)
    assert schedule.free_capacity == schedule.admit().free_capacity == 1
    assert _turn(schedule).free_capacity == 3
    with pytest.raises(AssertionError, match="2 rows, room for 1"):
        schedule.submit(1, images=2, steps=1)


def test_a_finished_row_keeps_its_slot_until_it_is_released_and_takes_no_further_step():
    schedule = Schedule.empty(batch_size=2, max_waiting=9).submit(0, images=1, steps=1).submit(1, images=2, steps=3)
    schedule = schedule.admit().advance().advance()
    assert list(schedule.finished) == [0]
    assert schedule.done == (None, 2)
    assert schedule.has_steps
    schedule = schedule.advance()
    assert list(schedule.finished) == [0, 1]
    assert not schedule.has_steps  # a row waits, and no slot is free
    assert schedule.release([1]).has_steps
    assert schedule.release([1]).admit().done == (None, 0)


@given(
    requests=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=6, max_size=12),
    batch_size=st.integers(2, 4),
    turns=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 40)), min_size=10, max_size=30),
)
def test_a_slow_decoder_gets_finished_rows_in_order_of_arrival_whatever_slot_they_are_in(requests, batch_size, turns):
    """A turn is how many requests come, for how many rows there is room, and which request is cancelled."""
    schedule = Schedule.empty(batch_size=batch_size, max_waiting=99)
    coming = list(enumerate(requests))
    for count, room, victim in turns:
        for number, (images, steps) in coming[:count]:
            schedule = _submit(schedule, number, images, steps)
        coming = coming[count:]
        schedule = schedule.admit().advance().without(victim)
        handed = list(schedule.finished.items())[:room]
        schedule = schedule.release([slot for slot, _ in handed])
        left = [(row.request, row.image) for row in schedule.finished.values()]
        taken = [(row.request, row.image) for _, row in handed]
        assert taken + left == sorted(taken + left)


def test_steps_ahead_is_the_work_over_the_batch_size():
    schedule = Schedule.empty(batch_size=2, max_waiting=9).submit(0, images=3, steps=4)
    assert schedule.steps_ahead == 6
    assert schedule.admit().advance().steps_ahead == 5


def test_a_cancelled_request_frees_its_slots_and_places_and_moves_nobody():
    schedule = Schedule.empty(batch_size=3, max_waiting=9)
    schedule = schedule.submit(0, images=1, steps=2).submit(1, images=3, steps=2).submit(2, images=1, steps=2).admit()
    left = schedule.without(1)
    assert left.slots == (schedule.slots[0], None, None)
    assert left.waiting == (Row(request=2, image=0, steps=2),)
    assert left.without(1) == left


@given(requests=REQUESTS, batch_size=st.integers(1, 4), arrivals=st.lists(st.integers(0, 3), max_size=8))
def test_every_row_takes_exactly_its_steps_in_order_of_arrival(requests, batch_size, arrivals):
    schedule = Schedule.empty(batch_size=batch_size, max_waiting=99)
    entered, steps_taken, turns = [], {}, 0
    coming = list(enumerate(requests))
    while coming or schedule.requests:
        count = arrivals[turns] if turns < len(arrivals) else len(coming)
        for number, (images, steps) in coming[:count]:
            schedule = _submit(schedule, number, images, steps)
        coming = coming[count:]
        before = schedule.slots
        schedule = schedule.admit()
        assert all(old in (None, new) for old, new in zip(before, schedule.slots, strict=True))  # nobody moves
        assert not schedule.waiting or None not in schedule.slots  # no slot stays free while a row waits
        entered += [(row.request, row.image) for row in schedule.unstarted.values()]
        for row in schedule.running:
            steps_taken[row.request, row.image] = steps_taken.get((row.request, row.image), 0) + 1
        assert schedule.has_steps == bool(schedule.running)
        schedule = schedule.advance()
        schedule = schedule.release(schedule.finished)
        turns += 1
    expected = {(number, image): steps for number, (images, steps) in enumerate(requests) for image in range(images)}
    assert steps_taken == expected
    assert entered == sorted(expected)


@given(requests=REQUESTS, batch_size=st.integers(1, 4), turns=st.integers(0, 5), victim=st.integers(0, 7))
def test_cancelling_leaves_the_others_as_they_were(requests, batch_size, turns, victim):
    schedule = Schedule.empty(batch_size=batch_size, max_waiting=99)
    for number, (images, steps) in enumerate(requests):
        schedule = schedule.submit(number, images=images, steps=steps)
    for _ in range(turns):
        schedule = _turn(schedule)
    left = schedule.without(victim)
    mine = [row for row in (*schedule.running, *schedule.waiting) if row.request == victim]
    assert left.free_capacity == schedule.free_capacity + len(mine)
    assert [row for row in schedule.waiting if row not in mine] == list(left.waiting)
    assert all(new == (None if old in mine else old) for old, new in zip(schedule.slots, left.slots, strict=True))


def test_chats_of_the_oldest_ones_kind_are_answered_together():
    oldest = ChatTicket(request=3, with_image=True, max_tokens=8)
    others = [
        replace(oldest, request=4, with_image=False),
        replace(oldest, request=5),
        replace(oldest, request=6, max_tokens=9),
        replace(oldest, request=7),
        replace(oldest, request=8),
    ]
    assert next_chats([oldest, *others], batch_size=3) == (3, 5, 7)
    assert next_chats(others[:1], batch_size=3) == (4,)
    assert next_chats([], batch_size=3) == ()
