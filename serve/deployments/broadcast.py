"""Asking every replica of a deployment the same, past their queues of requests."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

TIMEOUT_S = 5  # below the ten seconds that Prometheus gives a scrape


@dataclass(frozen=True, kw_only=True)
class Replies:
    """What replicas returned. `silent` ones failed, or have not answered in time."""

    values: tuple[Any, ...] = ()
    silent: int = 0


async def ask_all(
    handle: DeploymentHandle, method: str, *, until_first: bool = False, timeout_s: float = TIMEOUT_S
) -> Replies:
    """Calls a method of every replica; one that hangs does not hold up the replies of the others.

    With `until_first`, returns as soon as one has answered.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + timeout_s
    try:
        # Not `results_async`, which returns all results or, if one replica hangs, none.
        sent = handle.broadcast(method)._fetch_replica_results_async()
        calls = await asyncio.wait_for(sent, timeout_s)
    except (DeploymentUnavailableError, TimeoutError):
        return Replies()
    pending = {asyncio.ensure_future(call.get_async()) for call in calls}
    until = asyncio.FIRST_COMPLETED if until_first else asyncio.ALL_COMPLETED
    values: list[Any] = []
    while pending and not (until_first and values) and clock() < end:
        done, pending = await asyncio.wait(pending, timeout=end - clock(), return_when=until)
        values += _results(done)
    for task in pending:
        task.cancel()
    return Replies(values=tuple(values), silent=len(calls) - len(values))


def _results(done: Iterable[asyncio.Task[Any]]) -> list[Any]:
    """What was returned; replicas return expected errors as values."""
    returned = [task.result() for task in done if task.exception() is None]
    return [value for value in returned if not isinstance(value, Exception)]
