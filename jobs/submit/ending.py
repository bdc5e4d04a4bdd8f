"""How jobs end: by themselves with a code, or stopped; and the option that `submit` and `jobs` share."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from blip3o.errors import ConfigError, nearest

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from jobs.submit.client import Job

STOP_S = 60.0  # Ray asks a driver to end, and kills it later; 14 s were seen
_POLL_S = 0.5

Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="The cluster's job server, as in http://127.0.0.1:8265, or RAY_API_SERVER_ADDRESS.",
    ),
]  # fmt: skip


class JobEnded(typer.TyperException):
    """A followed job that did not succeed; `exit_code` is the job's."""

    def __init__(self, message: str, exit_code: int) -> None:
        """`message` says which job, and how it ended."""
        super().__init__(message)
        self.exit_code = exit_code


def stop_job(submission_id: str, address: str | None) -> str:
    """Stops a job and says how it ended. Raises `ConfigError` for an unknown one, and as `connect` does."""
    from jobs.submit.client import ENDED, asking, connect, find_job

    client = connect(address)
    job = find_known(client, submission_id)
    if job.status in ENDED:
        return f"{submission_id} has ended already: {job.status}"
    with asking(client.get_address()):
        client.stop_job(submission_id)
    deadline = time.monotonic() + STOP_S
    while (job := find_job(client, submission_id)).status not in ENDED and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return f"{submission_id}: {job.status}"


def find_known(client: "JobSubmissionClient", submission_id: str) -> "Job":
    """A job of the cluster. Raises `ConfigError` for an unknown one, with the nearest known id."""
    from jobs.submit.client import list_jobs

    known = {job.id: job for job in list_jobs(client)}
    if submission_id not in known:
        raise ConfigError(f"the cluster has no job {submission_id}: {nearest(submission_id, known)}")
    return known[submission_id]
