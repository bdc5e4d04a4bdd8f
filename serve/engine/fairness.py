"""A fair queue of requests. Pure: a value, without threads and clocks; every decision returns a new one.

Requests of a higher priority go first. Among those of one priority, owners share the work equally, whatever they
queue (start-time fair queueing, Goyal, Vin and Cheng 1996). Of one owner, requests are served by a tag: that of its
first row is the owner's work that was served before it came, and each further row adds its cost. So a request of ten
images lets a later one of one image pass, but never one that came after its next row's turn: nothing starves.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

KEPT_FREE = 10  # places for owners who have nothing here: the images of the largest request


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A request with `left` rows to be served, each of `cost`, and the number of the next one."""

    request: int
    owner: str
    priority: int
    cost: float
    left: int
    tag: float = 0.0
    row: int = 0


@dataclass(frozen=True, kw_only=True)
class FairQueue:
    """Requests in order of arrival, and per owner its virtual time and the work that was served."""

    entries: tuple[Entry, ...] = ()
    finished: Mapping[str, float] = field(default_factory=dict)
    served: Mapping[str, float] = field(default_factory=dict)
    clock: float = 0.0

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return sum(entry.left for entry in self.entries)

    @property
    def requests(self) -> frozenset[int]:
        """Requests that have rows here."""
        return frozenset(entry.request for entry in self.entries)

    @property
    def order(self) -> tuple[Entry, ...]:
        """All entries, those first whose next row is served first."""
        return tuple(sorted(self.entries, key=self._key))

    def add(self, request: int, *, owner: str = "", priority: int = 0, cost: float, rows: int = 1) -> Self:
        """Queues a request of `rows` rows."""
        entry = Entry(
            request=request, owner=owner, priority=priority, cost=cost, left=rows, tag=self.served.get(owner, 0.0)
        )
        return replace(self, entries=(*self.entries, entry))

    def admits(self, owner: str, rows: int, *, free: int, places: int) -> bool:
        """Whether `rows` more of an owner may wait, in a queue of `places` rows of which `free` are left.

        An owner who has more than an equal share, counting one who may still come, leaves a few places free: so
        whoever has nothing here gets in. Requests without an owner leave none, since nobody else will come.
        """
        own = sum(entry.left for entry in self.entries if entry.owner == owner)
        owners = {entry.owner for entry in self.entries} | {owner}
        if not owner or not own or own + rows <= places // (len(owners) + 1):
            return rows <= free
        return rows <= free - min(KEPT_FREE, places // 2)

    def next(self, among: Collection[int] | None = None) -> Entry | None:
        """The entry whose row is served next, of all or of these requests."""
        candidates = [entry for entry in self.entries if among is None or entry.request in among]
        return min(candidates, key=self._key, default=None)

    def take(self, entry: Entry) -> Self:
        """Serves the next row of an entry."""
        start = self._start(entry.owner)
        left = replace(entry, left=entry.left - 1, tag=entry.tag + entry.cost, row=entry.row + 1)
        entries = tuple(left if each.request == entry.request else each for each in self.entries)
        entries = tuple(each for each in entries if each.left)
        finished = {**self.finished, entry.owner: start + entry.cost}
        served = {**self.served, entry.owner: self.served.get(entry.owner, 0.0) + entry.cost}
        # An owner who has nothing queued, and is behind the clock, is as one who never came.
        owners = {each.owner for each in entries} | {owner for owner, time in finished.items() if time > start}
        return replace(
            self,
            entries=entries,
            finished={owner: finished[owner] for owner in owners & finished.keys()},
            served={owner: served[owner] for owner in owners & served.keys()},
            clock=start,
        )

    def without(self, request: int) -> Self:
        """Removes a request."""
        return replace(self, entries=tuple(entry for entry in self.entries if entry.request != request))

    def _start(self, owner: str) -> float:
        return max(self.clock, self.finished.get(owner, 0.0))

    def _key(self, entry: Entry) -> tuple[int, float, float, int]:
        return -entry.priority, self._start(entry.owner), entry.tag, entry.request
