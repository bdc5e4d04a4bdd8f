"""`blip3o submit RECIPE --verb VERB [--set …] [-- OPTIONS OF THE VERB]`: runs a verb as a job of a cluster.

Packs this folder, checks the recipe here, passes S3 settings, follows the log, and ends with the job's own exit code.
An attempt whose driver was lost is followed by another, which continues. Secrets appear in nothing that is printed.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from blip3o.errors import ConfigError
from jobs.commands.interruption import Stopped
from jobs.common import RECIPE, StageOverrides, entry_point, program_path
from jobs.submit.ending import Address, JobEnded, stop_job


def command(  # noqa: PLR0913 - one parameter an option
    recipe: Annotated[str | None, RECIPE] = None,
    extra: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTIONS]", help="Options of the verb.", show_default=False)
    ] = None,
    *,
    verb: Annotated[str, typer.Option(metavar="VERB", help="What the job runs: train, index, encode, export, …")],
    overrides: StageOverrides,
    address: Address = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Pass on a variable of this shell, e.g. HF_TOKEN. Repeatable."),
    ] = None,
    credentials: Annotated[
        bool,
        typer.Option("--credentials/--no-credentials", help="Pass on the AWS keys of this shell, if there are any."),
    ] = True,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the job: print its id.")] = False,
    stop_on_interrupt: Annotated[
        bool, typer.Option("--stop-on-interrupt", help="Ctrl-C stops the job too; otherwise it is left running.")
    ] = False,
    max_resubmits: Annotated[
        int, typer.Option(metavar="N", min=0, help="Further attempts while this follows, if the driver is lost.")
    ] = 3,
) -> None:
    """Run a verb as a job of a cluster, follow it, and end with its exit code."""
    from jobs.submit.attempts import Submission, exit_code
    from jobs.submit.client import connect
    from jobs.submit.environment import job_environment
    from jobs.submit.packing import measure
    from jobs.submit.request import make_request

    options = list(extra or ())
    if recipe is not None and recipe.startswith("-"):  # no recipe before `--`
        options = [recipe, *options]
        recipe = None
    folder = Path.cwd()
    package = measure(folder)
    request = make_request(verb, recipe, overrides, options, package)
    environment = job_environment(env or (), credentials=credentials)
    if environment.hide(request.entrypoint) != request.entrypoint:
        raise ConfigError("a secret is among the job's arguments, which all may read: pass it on with --env NAME")
    submission = Submission(client=connect(address), request=request, environment=environment, folder=folder)
    _tell(str(package))
    _tell(f"submitted {submission.submit()} to {submission.client.get_address()}: {request.entrypoint}")
    if detach:
        _tell(_how_to_follow(submission.current))
        return
    try:
        job = submission.run(max_resubmits=max_resubmits, write=_print_now, tell=_tell)
    except (KeyboardInterrupt, Stopped):
        _leave(submission.current, address, stop=stop_on_interrupt)
        raise
    if code := exit_code(job):
        raise JobEnded(f"{job.id} ended as {job.status}, exit code {code}", code)
    _tell(f"{job.id} succeeded")


def _leave(submission_id: str | None, address: str | None, *, stop: bool) -> None:
    """What becomes of a job that is no longer followed."""
    if submission_id is None or not stop:
        _tell(_how_to_follow(submission_id))
        return
    _tell(stop_job(submission_id, address))


def _how_to_follow(submission_id: str | None) -> str:
    blip3o = program_path()
    return (
        f"{submission_id} continues; follow it: {blip3o} jobs logs {submission_id} --follow; "
        f"stop it: {blip3o} jobs stop {submission_id}"
    )


def _print_now(line: str) -> None:
    print(line, flush=True)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


main = entry_point("submit", command)
