"""Decides which row occupies which slot of the batch. Pure: no torch, no threads, no clock.

One image is one row. Rows enter free slots in the order of a fair queue (`serve.engine.fairness`), once their prompt
was read. They leave after their last evaluation of the denoiser, when the decoder has room, in order of arrival; rows
in slots never wait for each other. A `Schedule` is a value: every decision returns a new one.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Self

from serve.engine.fairness import FairQueue


@dataclass(frozen=True, kw_only=True)
class Row:
    """Image number `image` of request `request`, after `done` of its `steps` evaluations.

    Later requests have higher numbers.
    """

    request: int
    image: int
    steps: int
    done: int = 0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The batch's slots, and the requests that wait for one."""

    slots: tuple[Row | None, ...]
    queue: FairQueue
    max_waiting: int

    @classmethod
    def empty(cls, *, batch_size: int, max_waiting: int) -> Self:
        """`batch_size` free slots, and a queue of `max_waiting` rows behind them."""
        return cls(slots=(None,) * batch_size, queue=FairQueue(), max_waiting=max_waiting)

    @property
    def running(self) -> tuple[Row, ...]:
        """The rows in slots."""
        return tuple(row for row in self.slots if row is not None)

    @property
    def waiting(self) -> int:
        """Rows that wait for a slot."""
        return self.queue.rows

    @property
    def has_steps(self) -> bool:
        """Whether a step would advance a row that is in a slot."""
        return any(row.done < row.steps for row in self.running)

    @property
    def requests(self) -> frozenset[int]:
        """The requests that have rows here."""
        return frozenset(row.request for row in self.running) | self.queue.requests

    @property
    def free_capacity(self) -> int:
        """How many more rows can be submitted: free slots plus free places in the queue."""
        return len(self.slots) + self.max_waiting - len(self.running) - self.waiting

    def admits(self, owner: str, images: int) -> bool:
        """Whether a request of so many images may be submitted."""
        return self.queue.admits(owner, images, free=self.free_capacity, places=self.max_waiting)

    @property
    def unstarted(self) -> dict[int, Row]:
        """The rows that have not taken a step yet, by slot."""
        return {slot: row for slot, row in enumerate(self.slots) if row is not None and row.done == 0}

    @property
    def finished(self) -> dict[int, Row]:
        """The rows that have taken all of their steps, by slot, in order of arrival."""
        ready = [(slot, row) for slot, row in enumerate(self.slots) if row is not None and row.done == row.steps]
        return dict(sorted(ready, key=lambda item: (item[1].request, item[1].image)))

    @property
    def steps_ahead(self) -> float:
        """Evaluations of the batch until all submitted rows are finished, if every slot were used."""
        running = sum(row.steps - row.done for row in self.running)
        return (running + sum(entry.left * entry.cost for entry in self.queue.entries)) / len(self.slots)

    def steps_until(self, *, images: int, steps: int) -> float:
        """Evaluations of the batch until a request that came now would be finished, at the latest.

        No request that comes later is counted; one of a higher priority may still delay it.
        """
        return self.steps_ahead + math.ceil(images / len(self.slots)) * steps

    def submit(self, request: int, *, images: int, steps: int, owner: str = "", priority: int = 0) -> Self:
        """Queues a request's rows. The caller asks `admits` first."""
        assert images <= self.free_capacity, f"{images} rows, room for {self.free_capacity}"
        queue = self.queue.add(request, owner=owner, priority=priority, cost=steps, rows=images)
        return replace(self, queue=queue)

    def can_admit(self, ready: Collection[int]) -> bool:
        """Whether `admit` would fill a slot."""
        return None in self.slots and not self.queue.requests.isdisjoint(ready)

    def admit(self, ready: Collection[int]) -> Self:
        """Moves rows of the requests in `ready` from the queue to free slots, lowest slot first."""
        slots, queue = list(self.slots), self.queue
        for slot, row in enumerate(slots):
            entry = queue.next(ready) if row is None else None
            if entry is not None:
                slots[slot] = Row(request=entry.request, image=entry.row, steps=int(entry.cost))
                queue = queue.take(entry)
        return replace(self, slots=tuple(slots), queue=queue)

    @property
    def stepping(self) -> tuple[int, ...]:
        """The slots whose row takes another step."""
        return tuple(slot for slot, row in enumerate(self.slots) if row is not None and row.done < row.steps)

    def advance(self) -> Self:
        """Counts one step for every row in a slot that is not finished."""
        slots = (row and replace(row, done=min(row.done + 1, row.steps)) for row in self.slots)
        return replace(self, slots=tuple(slots))

    def release(self, slots: Collection[int]) -> Self:
        """Frees these slots."""
        return replace(self, slots=tuple(None if slot in slots else row for slot, row in enumerate(self.slots)))

    def without(self, request: int) -> Self:
        """Removes all rows of a request; the others stay where they are."""
        slots = tuple(None if row and row.request == request else row for row in self.slots)
        return replace(self, slots=slots, queue=self.queue.without(request))


def partial_steps(steps: int, count: int) -> tuple[int, ...]:
    """After which of its evaluations a row gets a preview: `count`, evenly over the first part, fewer if there are few.

    The first comes early: the whole takes two intervals after the last one.
    """
    after = {math.ceil(steps * (number + 1) / (count + 2)) for number in range(count)}
    return tuple(sorted(step for step in after if step < steps))


def decoders_half(waiting: Sequence[int], *, decoding: int, denoising: float, widths: Sequence[int]) -> int:
    """How many rows the decoder takes in to have half of all, rounded up to a width, and no run of one request divided.

    `waiting` has the requests of the rows that wait for it; `decoding` rows are in it, and `denoising` come later.
    """
    half = (len(waiting) + decoding + denoising) / 2
    width = min((width for width in widths if width >= half), default=max(widths))
    count = min(max(width - decoding, 0), len(waiting))
    while 0 < count < len(waiting) and waiting[count] == waiting[count - 1]:
        count += 1
    return count
