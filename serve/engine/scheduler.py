"""Decides which row occupies which slot of the batch. Pure: no torch, no threads, no clock.

One image is one row. Rows enter free slots in order of arrival, whatever their number of steps. They leave after their
last step, when the decoder has room, again in order of arrival; rows in slots never wait for each other. A `Schedule`
is a value: every decision returns a new one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Row:
    """Image number `image` of request `request`, after `done` of its `steps` denoising steps.

    Later requests have higher numbers.
    """

    request: int
    image: int
    steps: int
    done: int = 0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The batch's slots, and the rows that wait for one, first come, first served."""

    slots: tuple[Row | None, ...]
    waiting: tuple[Row, ...] = ()
    max_waiting: int

    @classmethod
    def empty(cls, *, batch_size: int, max_waiting: int) -> Self:
        """`batch_size` free slots, and a queue of `max_waiting` rows behind them."""
        return cls(slots=(None,) * batch_size, max_waiting=max_waiting)

    @property
    def running(self) -> tuple[Row, ...]:
        """The rows in slots."""
        return tuple(row for row in self.slots if row is not None)

    @property
    def has_steps(self) -> bool:
        """Whether a step would advance a row, one in a slot or one that can enter a free slot."""
        return any(row.done < row.steps for row in self.running) or (None in self.slots and bool(self.waiting))

    @property
    def requests(self) -> frozenset[int]:
        """The requests that have rows here."""
        return frozenset(row.request for row in (*self.running, *self.waiting))

    @property
    def free_capacity(self) -> int:
        """How many more rows can be submitted: free slots plus free places in the queue."""
        return len(self.slots) + self.max_waiting - len(self.running) - len(self.waiting)

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
        """Denoising steps of the batch until all submitted rows are finished, if every slot were used."""
        return sum(row.steps - row.done for row in (*self.running, *self.waiting)) / len(self.slots)

    def submit(self, request: int, *, images: int, steps: int) -> Self:
        """Queues a request's rows. The caller checks `free_capacity` first."""
        assert images <= self.free_capacity, f"{images} rows, room for {self.free_capacity}"
        rows = tuple(Row(request=request, image=image, steps=steps) for image in range(images))
        return replace(self, waiting=self.waiting + rows)

    def admit(self) -> Self:
        """Moves rows from the head of the queue to free slots, lowest slot first."""
        queue = iter(self.waiting)
        slots = tuple(next(queue, None) if row is None else row for row in self.slots)
        return replace(self, slots=slots, waiting=tuple(queue))

    @property
    def done(self) -> tuple[int | None, ...]:
        """The steps that the row in each slot has taken; None where no row takes another one."""
        return tuple(None if row is None or row.done == row.steps else row.done for row in self.slots)

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
        return replace(self, slots=slots, waiting=tuple(row for row in self.waiting if row.request != request))


@dataclass(frozen=True, kw_only=True)
class ChatTicket:
    """The properties that decide which conversations can be answered in one batch."""

    request: int
    with_image: bool
    max_tokens: int


def next_chats(waiting: Sequence[ChatTicket], *, batch_size: int) -> tuple[int, ...]:
    """The next requests to answer in one batch: the oldest, and up to `batch_size - 1` later ones like it."""
    kind = [(ticket.with_image, ticket.max_tokens) for ticket in waiting[:1]]
    return tuple(ticket.request for ticket in waiting if (ticket.with_image, ticket.max_tokens) in kind)[:batch_size]
