"""The scheduler and its fair queue: capacity, order, and that nothing starves or is lost."""

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.fairness import FairQueue
from serve.engine.scheduler import Schedule, decoders_half, partial_steps

QUICK = settings(deadline=None, max_examples=40)
SUBMITS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.sampled_from("ab"), st.integers(0, 1)), min_size=1, max_size=12
)


def _served(queue):
    """The requests of the rows in the order in which they are served."""
    order = []
    while (entry := queue.next()) is not None:
        order.append(entry.request)
        queue = queue.take(entry)
    return order


def _queue(*requests):
    queue = FairQueue()
    for number, request in enumerate(requests):
        queue = queue.add(number, **request)
    return queue


@QUICK
@given(SUBMITS, st.integers(1, 4), st.data())
def test_every_row_steps_as_often_as_it_must_and_no_slot_idles(submits, slots, data):
    schedule, taken, waiting = Schedule.empty(batch_size=slots, max_waiting=99), {}, list(enumerate(submits))
    while waiting or schedule.requests:
        for _ in range(data.draw(st.integers(0 if schedule.requests else 1, 3))):
            if waiting and waiting[0][1][0] <= schedule.free_capacity:
                number, (images, steps, owner, priority) = waiting.pop(0)
                schedule = schedule.submit(number, images=images, steps=steps, owner=owner, priority=priority)
        schedule = schedule.admit(schedule.queue.requests)
        assert None not in schedule.slots or not schedule.waiting
        for slot in schedule.stepping:
            row = schedule.slots[slot]
            taken[row.request, row.image] = taken.get((row.request, row.image), 0) + 1
        schedule = schedule.advance()
        schedule = schedule.release(list(schedule.finished))
    expected = {(n, image): steps for n, (images, steps, *_) in enumerate(submits) for image in range(images)}
    assert taken == expected


@QUICK
@given(SUBMITS, st.integers(0, 11))
def test_a_request_that_ends_leaves_nothing_and_moves_no_other(submits, victim):
    schedule = Schedule.empty(batch_size=3, max_waiting=99)
    for number, (images, steps, owner, priority) in enumerate(submits):
        schedule = schedule.submit(number, images=images, steps=steps, owner=owner, priority=priority)
    schedule = schedule.admit(range(6)).advance()
    left = schedule.without(victim)
    assert victim not in left.requests
    assert [row for row in left.slots if row] == [row for row in schedule.running if row.request != victim]
    freed = sum(images for number, (images, *_) in enumerate(submits) if number == victim)
    assert left.free_capacity == schedule.free_capacity + freed


def test_rows_enter_only_when_their_prompt_was_read():
    schedule = Schedule.empty(batch_size=2, max_waiting=9).submit(0, images=2, steps=1).submit(1, images=1, steps=1)
    assert schedule.can_admit([1]) and not schedule.can_admit([])
    assert [row.request for row in schedule.admit([1]).running] == [1]


def test_a_priority_goes_first():
    queue = _queue({"cost": 1}, {"cost": 1, "priority": 2}, {"cost": 1, "priority": 1})
    assert _served(queue) == [1, 2, 0]


@QUICK
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 10), st.integers(1, 30)), min_size=2, max_size=9),
)
def test_owners_with_rows_queued_share_the_work_whatever_they_queue(requests):
    """While both have rows, two owners' work differs by at most the largest row of each."""
    queue = _queue(*({"owner": owner, "rows": rows, "cost": cost} for owner, rows, cost in requests))
    work = dict.fromkeys("abc", 0.0)
    largest = {name: max((cost for owner, _, cost in requests if owner == name), default=0) for name in work}
    waiting = {owner for owner, *_ in requests}
    while (entry := queue.next()) is not None:
        work[entry.owner] += entry.cost
        queue = queue.take(entry)
        for one in waiting:
            for other in waiting:
                assert abs(work[one] - work[other]) <= largest[one] + largest[other]
        waiting &= {left.owner for left in queue.entries}


def test_a_request_of_one_image_passes_one_of_ten():
    queue = _queue({"cost": 30, "rows": 10})
    for _ in range(3):
        queue = queue.take(queue.next())
    assert _served(queue.add(1, cost=30)).index(1) <= 1


@QUICK
@given(st.integers(2, 10), st.integers(1, 30), st.integers(1, 30))
def test_no_stream_of_small_requests_starves_a_large_one(rows, large, small):
    """One small request comes for each row that is served: all rows of the large one are served in time."""
    queue = FairQueue().add(0, cost=large, rows=rows)
    served = 0
    for number in range(1, 200 * rows):
        queue = queue.add(number, cost=small)
        entry = queue.next()
        served += entry.request == 0
        queue = queue.take(entry)
        if served == rows:
            break
    assert served == rows and number * small <= rows * (large + small) + small * rows


def test_an_owner_who_comes_late_has_no_claim_on_the_past():
    queue = _queue({"owner": "a", "cost": 1, "rows": 100})
    for _ in range(50):
        queue = queue.take(queue.next())
    order = _served(queue.add(1, owner="b", cost=1, rows=10))
    assert order[:20].count(1) in (9, 10) and order[0] in (0, 1)


@QUICK
@given(st.integers(1, 60), st.integers(1, 3))
def test_previews_come_in_order_before_the_end_the_first_within_a_third(steps, count):
    after = partial_steps(steps, count)
    assert len(after) <= count and list(after) == sorted(set(after)) and all(0 < step < steps for step in after)
    if steps >= 5:
        assert len(after) == count and after[0] <= -(-steps // 3)


def test_the_estimate_counts_what_is_ahead():
    schedule = Schedule.empty(batch_size=2, max_waiting=9).submit(0, images=4, steps=10)
    assert schedule.steps_ahead == 20
    assert schedule.steps_until(images=3, steps=5) == 30
    schedule = schedule.admit([0]).advance()
    assert schedule.steps_ahead == 19


@QUICK
@given(st.lists(st.tuples(st.integers(1, 10), st.booleans()), max_size=40), st.integers(1, 16), st.integers(20, 64))
def test_whoever_has_nothing_queued_gets_in_whatever_another_has_queued(requests, slots, max_waiting):
    schedule = Schedule.empty(batch_size=slots, max_waiting=max_waiting)
    for number, (images, starts) in enumerate(requests):
        if schedule.admits("a", images):
            schedule = schedule.submit(number, images=images, steps=1, owner="a")
        if starts:
            schedule = schedule.admit(schedule.requests)
        assert schedule.admits("b", 10)


@QUICK
@given(st.integers(20, 64), st.integers(1, 5))
def test_owners_that_want_it_share_the_queue(max_waiting, images):
    """One has filled it; while rows are served, another who also asks for all it can gets a third at least."""
    schedule, number = Schedule.empty(batch_size=1, max_waiting=max_waiting), itertools.count()

    def fill(schedule, owner):
        while schedule.admits(owner, images):
            schedule = schedule.submit(next(number), images=images, steps=1, owner=owner)
        return schedule

    def waiting(owner):
        return sum(entry.left for entry in schedule.queue.entries if entry.owner == owner)

    schedule = fill(schedule, "a")
    for _ in range(4 * max_waiting):
        schedule = fill(fill(schedule, "a"), "b").admit(schedule.requests).advance()
        schedule = schedule.release(list(schedule.finished))
    assert min(waiting("a"), waiting("b")) >= max_waiting // 3 - images
    assert waiting("a") + waiting("b") <= max_waiting + 1


def test_requests_without_an_owner_may_fill_the_queue():
    assert Schedule.empty(batch_size=1, max_waiting=20).submit(0, images=20, steps=1).admits("", 1)


@QUICK
@given(st.lists(st.integers(1, 4), max_size=16).map(sorted), st.integers(0, 16), st.integers(0, 32))
def test_the_decoder_takes_half_of_the_rows_and_of_no_request_a_part(waiting, decoding, denoising):
    widths = (1, 2, 4, 8, 16)
    count = decoders_half(waiting, decoding=decoding, denoising=denoising, widths=widths)
    assert 0 <= count <= len(waiting) and (count > 0 or decoding or not waiting)
    assert len({*waiting[:count]} & {*waiting[count:]}) == 0
    half = (len(waiting) + decoding + denoising) / 2
    assert count == len(waiting) or count + decoding >= min(half, 16)
    if len(set(waiting)) == len(waiting) and count:
        assert count + decoding < 2 * max(half, 1)  # a width is less than twice what it is for
    assert decoders_half(waiting, decoding=0, denoising=math.inf, widths=widths) == len(waiting)
