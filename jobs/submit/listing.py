"""`blip3o jobs`, `blip3o jobs stop ID` and `blip3o jobs logs ID`: what runs on a cluster, without its secrets."""

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.common import new_app
from jobs.submit.ending import Address, JobEnded, find_known, stop_job

if TYPE_CHECKING:
    from jobs.submit.client import Job

app = new_app(
    help="List the jobs of a cluster, stop one, or show its log.", invoke_without_command=True, no_args_is_help=False
)
SubmissionId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as `blip3o jobs` lists it.")]


@app.callback()
def jobs(
    context: typer.Context,
    *,
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """List the jobs of a cluster, stop one, or show its log."""
    if context.invoked_subcommand is not None:
        return
    from jobs.submit.client import connect, list_jobs

    found = list_jobs(connect(address))
    if as_json:
        print(json.dumps([vars(job) for job in found], indent=1))
        return
    width = max((len(job.id) for job in found), default=0)
    for job in found:
        print(_line(job, width))
    if not found:
        print("no jobs: submit one with `blip3o submit RECIPE --verb train`")


@app.command()
def stop(submission_id: SubmissionId, *, address: Address = None) -> None:
    """Stop a job, and wait until it has ended. A run keeps its checkpoints: submitted again, it continues."""
    print(stop_job(submission_id, address))


@app.command()
def logs(
    submission_id: SubmissionId,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow it until the job has ended, and end with its exit code.")
    ] = False,
    address: Address = None,
) -> None:
    """Print what a job has written. The S3 keys of this shell are hidden."""
    from jobs.submit import following
    from jobs.submit.attempts import exit_code
    from jobs.submit.client import asking, connect
    from jobs.submit.environment import job_environment

    client, hide = connect(address), job_environment().hide
    find_known(client, submission_id)
    if not follow:
        with asking(client.get_address()):
            print(hide(client.get_job_logs(submission_id)), end="")
        return
    job = following.follow(client, submission_id, lambda line: print(hide(line), flush=True))
    if code := exit_code(job):
        raise JobEnded(f"{job.id} ended as {job.status}, exit code {code}", code)


def _line(job: "Job", width: int) -> str:
    seconds = (job.ended or time.time()) - job.started if job.started else 0.0
    code = "" if job.exit_code is None else f"exit {job.exit_code}"
    return f"{job.id:{width}}  {job.status:9}  {seconds:6.0f} s  {code:8}  {job.entrypoint}"
