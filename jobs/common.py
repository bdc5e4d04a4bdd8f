"""What all jobs share: reading `RECIPE --set … --dry-run`, joining Ray, and turning user errors into one line."""

import argparse
import errno
import os
import select
import sys
from collections.abc import Callable
from typing import TypeVar

from blip3o import log, settings
from blip3o.config.load import dump, load_recipe
from blip3o.config.pipeline import TrainingPipeline, load_pipeline
from blip3o.config.recipe import Recipe
from blip3o.errors import Blip3oError

Extend = Callable[[argparse.ArgumentParser], None]


def recipe_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """The options of every job that takes a recipe."""
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{verb}", description=description)
    parser.add_argument("recipe", help="a recipe file or the name of a shipped one; one stage of it: tiny:generate")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. optim.steps=100"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")
    return parser


T = TypeVar("T")
Action = Callable[[Recipe, argparse.Namespace], object]
PipelineAction = Callable[[TrainingPipeline, argparse.Namespace], object]


def run_job(
    verb: str, description: str, action: Action, argv: list[str] | None = None, *, extend: Extend | None = None
) -> int:
    """Runs one job from its command line; returns the exit code. User errors become one line on stderr.

    `extend` adds the job's own options.
    """
    return _run(_parser(verb, description, extend), argv, load_recipe, dump, action)


def run_pipeline_job(
    verb: str, description: str, action: PipelineAction, argv: list[str] | None = None, *, extend: Extend | None = None
) -> int:
    """The same for a job that takes a pipeline too, with `--set STAGE:key=value`; a recipe is one of a single stage."""
    return _run(_parser(verb, description, extend), argv, load_pipeline, dump_pipeline, action)


def _parser(verb: str, description: str, extend: Extend | None) -> argparse.ArgumentParser:
    parser = recipe_parser(verb, description)
    if extend is not None:
        extend(parser)
    return parser


def _run(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    load: Callable[[str, list[str]], T],
    show: Callable[[T], str],
    action: Callable[[T, argparse.Namespace], object],
) -> int:
    log.configure()
    settings.configure_ray()

    def run() -> None:
        options = parser.parse_args(argv)
        asked = load(options.recipe, options.set)
        print(show(asked))
        if not options.dry_run:
            action(asked, options)

    return guarded(run)


def dump_pipeline(pipeline: TrainingPipeline) -> str:
    """The resolved recipes of all stages, as documents of one YAML stream."""
    return "---\n".join(dump(recipe) for recipe in pipeline.stages)


def guarded(action: Callable[[], object]) -> int:
    """Runs an action; a user error is printed as one line and gives exit code 1, and so does output that is lost.

    Ctrl-C gives 130, as in a shell.
    """
    code = 0
    try:
        try:
            action()
        except Blip3oError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            code = 130
        finally:  # what stdout still holds would fail as Python exits, with a traceback
            if sys.stdout is not None:  # a shell can close it: `>&-`
                sys.stdout.flush()
    except OSError as error:
        if not _is_lost_output(error):
            raise
        code = 1
    return code


def _is_lost_output(error: OSError) -> bool:
    """Whether stdout takes no more: its reader has gone, as in `| head`, or the disk is full, which is told.

    What is left to write is dropped then.
    """
    if error.errno == errno.ENOSPC and error.filename is None:
        print(f"error: the output cannot be written ({error.strerror}): free space on its disk", file=sys.stderr)
    elif error.errno != errno.EPIPE or not _reader_has_gone():
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _reader_has_gone() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def on_a_cluster() -> bool:
    """Whether this process was submitted to a cluster, or told of one; else Ray is this machine's own."""
    return bool(settings.get("RAY_ADDRESS") or settings.get("RAY_JOB_ID"))


def join_ray() -> None:
    """Joins the cluster this job was submitted to, or starts a private one on this machine. Idempotent."""
    import ray

    if ray.is_initialized():
        return
    if on_a_cluster():
        ray.init(log_to_driver=False)
    else:
        # Without a dashboard, whose state API Ray Train asks at the end of a run, every run ends 12 s later.
        ray.init("local", num_cpus=LOGICAL_CPUS, include_dashboard=True, log_to_driver=False)


def leave_ray() -> None:
    """Leaves the cluster; a private one is stopped with all of its processes."""
    import ray

    ray.shutdown()


# A private cluster on a laptop: trainers and decoders share two cores, so more logical CPUs are offered than exist.
LOGICAL_CPUS = 6
