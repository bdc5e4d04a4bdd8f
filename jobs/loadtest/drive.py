"""Keeps up a load: an open loop, in which requests arrive at random, or a closed one, of clients that wait."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from jobs.loadtest.client import Client, Outcome
from jobs.loadtest.workload import Call

logger = logging.getLogger(__name__)

_LINE_S = 5.0  # between lines of progress


@dataclass
class Phase:
    """What came of a phase's requests, in the order of their ends; also of one that was interrupted.

    `sent` counts those without a reply, too; `most_at_once` is how many the server had at a time.
    """

    name: str
    outcomes: list[Outcome] = field(default_factory=list)
    sent: int = 0
    at_once: int = 0
    most_at_once: int = 0

    @property
    def seconds(self) -> float:
        """From the start to the last reply."""
        return max((outcome.done for outcome in self.outcomes), default=0.0)


async def run(phase: Phase, client: Client, calls: Iterable[Call], *, clients: int, seconds: float | None) -> None:
    """Sends the calls, `clients` at a time at most, and waits for all replies.

    A call that has a time is sent then, or as soon as there is a client; the others one after the other. None is sent
    after `seconds`.
    """
    start = asyncio.get_running_loop().time()
    pending = iter(calls)
    async with _progress(phase):
        first = next(pending, None)
        if first is None:
            return
        every = itertools.chain([first], pending)
        if first.due is None:
            await _closed(phase, client, every, start, clients=clients, seconds=seconds)
        else:
            await _open(phase, client, every, start, clients=clients, seconds=seconds)


async def _closed(
    phase: Phase, client: Client, calls: Iterable[Call], start: float, *, clients: int, seconds: float | None
) -> None:
    clock = asyncio.get_running_loop().time
    queue = iter(calls)

    async def keep_asking() -> None:
        for call in queue:
            if seconds is not None and clock() - start >= seconds:
                return
            await _ask(phase, client, call, start)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(keep_asking())


async def _open(
    phase: Phase, client: Client, calls: Iterable[Call], start: float, *, clients: int, seconds: float | None
) -> None:
    clock = asyncio.get_running_loop().time
    free = asyncio.Semaphore(clients)

    async def ask_when_free(call: Call) -> None:
        async with free:
            await _ask(phase, client, call, start)

    async with asyncio.TaskGroup() as group:
        for call in calls:
            assert call.due is not None, "all calls of a phase have a time, or none"
            if seconds is not None and call.due >= seconds:
                return
            await asyncio.sleep(start + call.due - clock())
            group.create_task(ask_when_free(call))


async def _ask(phase: Phase, client: Client, call: Call, start: float) -> None:
    phase.sent += 1
    phase.at_once += 1
    phase.most_at_once = max(phase.most_at_once, phase.at_once)
    try:
        phase.outcomes.append(await client.ask(call, start))
    finally:
        phase.at_once -= 1


@asynccontextmanager
async def _progress(phase: Phase) -> AsyncIterator[None]:
    """A line every few seconds, while the body runs."""

    async def show() -> None:
        seen, seconds = 0, 0.0
        while True:
            await asyncio.sleep(_LINE_S)
            seconds += _LINE_S
            done, failed = len(phase.outcomes), sum(bool(outcome.error) for outcome in phase.outcomes)
            rate = (done - seen) / _LINE_S
            seen = done
            logger.info(
                "%s: %.0f s, %d done, %d failed, %d in flight, %.1f requests/s",
                *(phase.name, seconds, done, failed, phase.at_once, rate),
            )

    shown = asyncio.ensure_future(show())
    try:
        yield
    finally:
        shown.cancel()
