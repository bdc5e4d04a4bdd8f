"""A job's log as it is written, until the job has ended."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from blip3o.errors import ServiceError
from jobs.submit.client import ENDED, LOST, Job, find_job

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

POLL_S = 0.5
PATIENCE_S = 120.0  # without an answer of the cluster: a head that Kubernetes replaces needs about a minute


class LineWriter:
    """Passes whole lines on; after a reconnection, which sends the log from its start, not those passed already."""

    def __init__(self, write: Callable[[str], None]) -> None:
        """`write` gets one line at a time, without its end."""
        self._write = write
        self._passed = 0
        self._seen = 0
        self._rest = ""

    def restart(self) -> None:
        """What comes next is the log from its start."""
        self._seen, self._rest = 0, ""

    def feed(self, text: str) -> None:
        """Takes a piece of the log."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(line)

    def close(self) -> None:
        """Passes on a last line without an end."""
        if self._rest:
            self._line(self._rest)
        self._rest = ""

    def _line(self, line: str) -> None:
        self._seen += 1
        if self._seen > self._passed:
            self._passed = self._seen
            self._write(line)


def follow(client: "JobSubmissionClient", submission_id: str, write: Callable[[str], None]) -> Job:
    """Passes on the log of a job until it has ended, and returns it; of status `LOST` if its cluster forgot it.

    A connection that breaks is made again. Raises `ServiceError` if the cluster does not answer for two minutes.
    """
    lines = LineWriter(write)
    heard = time.monotonic()
    while True:
        try:
            if (job := find_job(client, submission_id)).status == LOST:
                return job
            lines.restart()
            asyncio.run(_tail(client, submission_id, lines))
            heard = time.monotonic()
            if (job := find_job(client, submission_id)).status in ENDED:
                lines.close()
                return job
        except ServiceError:
            if time.monotonic() - heard > PATIENCE_S:
                raise
        time.sleep(POLL_S)


async def _tail(client: "JobSubmissionClient", submission_id: str, lines: LineWriter) -> None:
    """Until the job has ended or the connection is lost. Raises `ServiceError` for the latter."""
    import aiohttp

    try:
        async for text in client.tail_job_logs(submission_id):
            lines.feed(text)
    except (RuntimeError, aiohttp.ClientError) as error:
        raise ServiceError(f"the log of {submission_id} cannot be read: {error}") from error
