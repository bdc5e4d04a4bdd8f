"""A request as one job after another: a new attempt takes the place of one whose driver was lost.

A verb that ends by itself with an error would end so again, and is not tried again. A driver that was killed, or whose
node or cluster is gone, is: every verb continues where it was.
"""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip3o.errors import ConfigError, ServiceError
from jobs.submit.client import ENDED, LOST, Job, asking, list_jobs
from jobs.submit.environment import JobEnvironment
from jobs.submit.following import follow
from jobs.submit.request import JobRequest

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

BRIEF_S = 20.0  # an attempt shorter than this cannot have reached a new checkpoint
STOPPED = 128 + signal.SIGTERM
_OWN_ERROR = "JOB_ENTRYPOINT_COMMAND_ERROR"
_NEVER_BEGAN = ("JOB_ENTRYPOINT_COMMAND_START_ERROR", "RUNTIME_ENV_SETUP_FAILURE", "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE")


def exit_code(job: Job) -> int:
    """The code of an ended job: its driver's own, 128 + N after signal N, 143 if it was stopped, 1 if it is lost."""
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return STOPPED
    if job.exit_code is None:
        return 1
    return 128 - job.exit_code if job.exit_code < 0 else job.exit_code or 1


def driver_was_lost(job: Job) -> bool:
    """Whether the driver did not end by itself: killed by a signal, or gone with its node or its cluster."""
    if job.status != "FAILED":
        return job.status == LOST
    if job.error_type in _NEVER_BEGAN:
        return False
    asked_to_end = (128 + signal.SIGINT, STOPPED)
    return job.error_type != _OWN_ERROR or (exit_code(job) > 128 and exit_code(job) not in asked_to_end)


def worth_another(ended: Sequence[Job], max_resubmits: int) -> bool:
    """Whether the last of these attempts is to be followed by another: not if the last two died at once."""
    brief = [job for job in ended[-2:] if (job.ended or 0.0) - (job.started or 0.0) < BRIEF_S and job.status != LOST]
    return driver_was_lost(ended[-1]) and len(ended) <= max_resubmits and len(brief) < 2


@dataclass(kw_only=True)
class Submission:
    """The attempts of one request on one cluster. `current` is the id of the newest."""

    client: "JobSubmissionClient"
    request: JobRequest
    environment: JobEnvironment
    folder: Path
    current: str | None = None
    _taken: set[str] = field(default_factory=set)

    def submit(self) -> str:
        """Starts the next attempt and returns its id. Raises `ConfigError` if another one is still running."""
        known = {job.id: job for job in list_jobs(self.client)}
        running = [each for each in self.request.attempts(known) if known[each].status not in ENDED]
        if running:
            raise ConfigError(
                f"{running[0]} is still running: follow it with `blip3o jobs logs {running[0]} --follow`, or stop it"
            )
        wanted = self.request.next_id({*known, *self._taken})
        runtime_env: dict[str, Any] = {
            "working_dir": str(self.folder),
            "env_vars": dict(self.environment.variables),
        }
        try:
            with asking(self.client.get_address()):
                self.client.submit_job(
                    entrypoint=self.request.entrypoint, submission_id=wanted, runtime_env=runtime_env
                )
        except ServiceError as error:
            raise ServiceError(self.environment.hide(str(error))) from None
        self._taken.add(wanted)
        self.current = wanted
        return wanted

    def run(self, *, max_resubmits: int, write: Callable[[str], None], tell: Callable[[str], None]) -> Job:
        """Follows the current attempt and those that take its place; returns the last. `tell` hears of each new one."""
        ended: list[Job] = []
        while True:
            job = follow(self.client, self.current or self.submit(), lambda line: write(self.environment.hide(line)))
            ended.append(job)
            if not worth_another(ended, max_resubmits):
                return job
            tell(f"{job.id}: the driver was lost ({job.message or 'its cluster has forgotten it'})")
            tell(f"submitted {self.submit()}, which continues: attempt {len(ended) + 1} of {max_resubmits + 1}")
