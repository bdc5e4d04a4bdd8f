"""Ray's job server, with errors that say what to do."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blip3o import settings
from blip3o.errors import ConfigError, ServiceError, one_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

EXAMPLE = "http://127.0.0.1:8265"
_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# Loggers of Ray's client, which report each file with rules and each connection that has ended.
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
)
LOST = "LOST"  # a job that its cluster no longer knows: the head was replaced


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as far as it may be shown: not its runtime environment, which has secrets. Times in seconds since 1970."""

    id: str
    status: str
    entrypoint: str
    message: str = ""
    exit_code: int | None = None
    error_type: str | None = None
    started: float | None = None
    ended: float | None = None


def connect(address: str | None) -> "JobSubmissionClient":
    """A client of the job server at `address`, or at that of the variable `RAY_API_SERVER_ADDRESS`.

    There is no other default: on a shared machine, port 8265 may be somebody else's cluster. Raises `ConfigError` if
    neither is given, for what is no HTTP address, a missing or wrong token, or another version of Ray than here;
    `ServiceError` if no cluster answers.
    """
    import ray
    from ray.job_submission import JobSubmissionClient

    url = (address or settings.get(_ADDRESS_VARIABLE) or "").rstrip("/")
    if not url:
        raise ConfigError(f"no cluster is named: give --address {EXAMPLE}, or set {_ADDRESS_VARIABLE}")
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--address {url} is no address of a job server: write it as in {EXAMPLE}")
    settings.override({_ADDRESS_VARIABLE: url})  # Ray prefers RAY_ADDRESS to the argument
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with asking(url):
        client = JobSubmissionClient(url)
        running = _version_of(client)
    if running != ray.__version__:
        raise ConfigError(f"the cluster at {url} runs Ray {running}, and this is {ray.__version__}: install that one")
    return client


def _version_of(client: "JobSubmissionClient") -> str | None:
    return vars(client).get("_server_ray_version")


@contextmanager
def asking(url: str) -> Iterator[None]:
    """Turns what goes wrong with a request to the job server into an error of ours."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ConfigError(
            f"the cluster at {url} refuses the token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to the cluster's"
        ) from error
    except (ConnectionError, requests.exceptions.RequestException) as error:
        raise ServiceError(
            f"no cluster answers at {url}: give --address http://HEAD:8265, or forward that port (`ray dashboard`)"
        ) from error
    except RuntimeError as error:
        raise ServiceError(f"the cluster at {url} refuses: {one_line(error)}") from error


def list_jobs(client: "JobSubmissionClient") -> list[Job]:
    """The submitted jobs of a cluster, in the order of their start. Raises as `asking` does."""
    with asking(client.get_address()):
        found = [_job(details) for details in client.list_jobs() if details.submission_id]
    return sorted(found, key=lambda job: job.started or 0.0)


def find_job(client: "JobSubmissionClient", submission_id: str) -> Job:
    """One job; of status `LOST` if the cluster does not know it. Raises as `asking` does."""
    known = {job.id: job for job in list_jobs(client)}
    return known.get(submission_id) or Job(id=submission_id, status=LOST, entrypoint="")


def _job(details: object) -> Job:
    values = vars(details)

    def seconds(name: str) -> float | None:
        return values[name] / 1000 if values[name] else None

    return Job(
        id=values["submission_id"],
        status=str(values["status"].value),
        entrypoint=values["entrypoint"],
        message=one_line(values["message"] or ""),
        exit_code=values["driver_exit_code"],
        error_type=values["error_type"],
        started=seconds("start_time"),
        ended=seconds("end_time"),
    )
