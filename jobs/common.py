"""What all verbs share: the options `RECIPE --set … --dry-run`, one way to run and to fail, and joining Ray."""

import errno
import functools
import inspect
import logging
import os
import select
import shlex
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.main import get_command

from blip3o import log, settings
from blip3o.config.load import dump, load_recipe
from blip3o.config.pipeline import TrainingPipeline, load_pipeline
from blip3o.config.recipe import Recipe
from blip3o.config.recipe_files import shipped
from blip3o.errors import Blip3oError
from jobs.commands.interruption import Stopped, deaf, install, terminate_by_exception

logger = logging.getLogger(__name__)

INTERRUPTED = 128 + signal.SIGINT  # the exit code after Ctrl-C, as in a shell; likewise after SIGTERM
# The verbs that continue where they were stopped, if they are run again.
RESUMABLE = ("demo", "index", "encode", "train", "ablate")
LAPTOP_CPUS = 6  # what a private Ray offers at least

RECIPE = typer.Argument(
    metavar="RECIPE",
    help="A recipe file or the name of a shipped recipe; tiny:generate is one stage of it.",
    show_default=False,
    autocompletion=lambda: sorted(shipped()),
)
RecipeName = Annotated[str, RECIPE]


def _overrides(help_text: str) -> typer.models.OptionInfo:
    return typer.Option("--set", metavar="KEY=VALUE", help=help_text, default_factory=list, show_default=False)


Overrides = Annotated[list[str], _overrides("Override a value of the recipe, e.g. optim.steps=100. Repeatable.")]
StageOverrides = Annotated[
    list[str],
    _overrides("Override a value, e.g. optim.steps=100, or STAGE:KEY=VALUE for one stage of a pipeline. Repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")]
Cluster = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Check against a cluster that need not exist: 4x8xH100, or a YAML file."),
]


class UsageError(typer.TyperException):
    """Options that cannot be combined: a command line that cannot be run, exit code 2."""

    exit_code = 2


def new_app(**settings_of_typer: Any) -> typer.Typer:  # noqa: ANN401 - any option of typer
    """A typer application whose errors `guarded` handles."""
    return typer.Typer(**{"no_args_is_help": True, "pretty_exceptions_enable": False} | settings_of_typer)


def entry_point(verb: str, command: Callable[..., None]) -> Callable[..., int]:
    """`main(argv)` of `python -m jobs.VERB`: parses, runs and fails as `blip3o VERB` does; returns the exit code."""
    app = new_app(add_completion=False)
    app.command(verb)(command)

    def main(argv: Sequence[str] | None = None) -> int:
        """Runs the verb from its command line; returns the exit code."""
        return run_app(app, argv, program=f"blip3o {verb}")

    return main


def run_app(app: typer.Typer, argv: Sequence[str] | None, *, program: str) -> int:
    """Runs a typer application from its command line (None: this process's); returns the exit code."""
    log.configure()
    settings.configure_ray()
    before = terminate_by_exception()
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> None:
        code = get_command(app).main(arguments, prog_name=program, standalone_mode=False)
        if code == INTERRUPTED:  # typer turns Ctrl-C into this code
            raise KeyboardInterrupt

    try:
        with log.session():
            try:
                code = guarded(run)
            finally:
                with deaf():
                    _leave_private_ray()
    finally:
        install(before)
    if code in (INTERRUPTED, 128 + signal.SIGTERM) and (again := _command_to_resume(program, arguments)):
        print(f"to continue: {again}", file=sys.stderr)
    return code


def _command_to_resume(program: str, arguments: Sequence[str]) -> str | None:
    """The command line that continues what a signal has stopped; None for a verb that keeps nothing."""
    _, *words = [*program.split(), *(word for word in arguments if word != "--fresh")]
    return f"{program_path()} {shlex.join(words)}" if words and words[0] in RESUMABLE else None


def program_path() -> str:
    """How a shell in this folder calls `blip3o` of this environment: by its name, or by its path."""
    own = Path(sysconfig.get_path("scripts"), "blip3o")
    if shutil.which("blip3o") == str(own) or not own.exists():
        return "blip3o"
    return shlex.quote(str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own))


def with_parameters(parameters: Iterable[inspect.Parameter]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a function with `**values`: typer reads these parameters as if the function declared them by name."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**values: Any) -> None:  # noqa: ANN401 - typer has checked their types
            function(**values)

        own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        merged = [p.replace(kind=p.KEYWORD_ONLY) for p in (*own, *parameters)]
        command.__dict__["__signature__"] = inspect.Signature(merged)
        command.__annotations__ = {p.name: p.annotation for p in merged}
        return command

    return decorate


def parameters_of(options: type) -> list[inspect.Parameter]:
    """The fields of a dataclass, whose annotations say how typer reads them, as parameters."""
    hints = get_type_hints(options, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(options)
    ]


def open_recipe(name: str, overrides: Sequence[str], *, dry_run: bool) -> Recipe:
    """Loads a recipe, prints it resolved for a dry run, and returns it. Raises `ConfigError`."""
    recipe = load_recipe(name, overrides)
    if dry_run:
        print(dump(recipe))
    return recipe


def open_pipeline(name: str, overrides: Sequence[str], *, dry_run: bool) -> TrainingPipeline:
    """Loads a pipeline (a recipe is one of a single stage), prints it resolved for a dry run, and returns it.

    Raises `ConfigError`.
    """
    pipeline = load_pipeline(name, overrides)
    if dry_run:
        print(dump_pipeline(pipeline))
    return pipeline


def dump_pipeline(pipeline: TrainingPipeline) -> str:
    """The resolved recipes of all stages, as documents of one YAML stream."""
    return "---\n".join(dump(recipe) for recipe in pipeline.stages)


def guarded(action: Callable[[], object]) -> int:
    """Runs an action and returns the exit code: 0, or 1 after a user error or lost output, 2 after a command line that
    cannot be parsed, 130 after Ctrl-C, 143 after SIGTERM. An error is printed as one line on stderr, and below it where
    the log is, if there is one.
    """
    code = 0
    try:
        try:
            action()
        except Blip3oError as error:
            _tell(f"error: {error}")
            if file := log.diverted():
                _tell(f"log: {file}")
            code = 1
        except typer.TyperException as error:
            if message := " ".join(
                error.format_message().split()
            ):  # empty for a group without a command, which has printed its help
                _tell(f"error: {message}")
            code = error.exit_code
        except KeyboardInterrupt:
            _tell("interrupted")
            code = INTERRUPTED
        except Stopped as stop:
            _tell(str(stop))
            code = 128 + stop.signum
        finally:  # flushed here: a failure at the exit of Python would print a traceback
            if sys.stdout is not None:  # closed by the shell: `>&-`
                sys.stdout.flush()
    except OSError as error:
        if not _is_lost_output(error):
            raise
        code = 1
    return code


def _tell(line: str) -> None:
    print(line, file=log.terminal())


def _is_lost_output(error: OSError) -> bool:
    """Whether stdout can no longer be written: its reader has gone, as in `| head`, or the disk is full.

    A full disk is reported. Any output that is not written yet is dropped.
    """
    if error.errno == errno.ENOSPC and error.filename is None:
        _tell(f"error: the output cannot be written ({error.strerror}): free space on its disk")
    elif error.errno != errno.EPIPE or not _reader_has_gone():
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _reader_has_gone() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def on_a_cluster() -> bool:
    """Whether this process was submitted to a cluster or given the address of one; else Ray is private."""
    return bool(settings.get("RAY_ADDRESS") or settings.get("RAY_JOB_ID"))


def has_ray() -> bool:
    """Whether this process has joined Ray, or can join a cluster without starting one."""
    return on_a_cluster() or ("ray" in sys.modules and sys.modules["ray"].is_initialized())


def join_ray() -> None:
    """Joins the cluster this job was submitted to, or starts a private one on this machine. Idempotent.

    With a private one, what libraries say goes to a file next to Ray's own logs, unless there is one already.
    """
    import ray

    if ray.is_initialized():
        return
    if on_a_cluster():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    else:
        began = time.monotonic()
        logger.info("starting Ray on this machine")
        # Ray Train queries the dashboard's state API at the end of a run; without one, it waits 12 s in vain.
        context = ray.init(
            "local",
            num_cpus=logical_cpus(),
            include_dashboard=True,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        logs = Path(context.address_info["session_dir"], "logs")
        log.divert(logs / "blip3o.log")
        logger.info("Ray started in %.0f s; logs of Ray and the workers:", time.monotonic() - began)
        logger.info("%s", logs)
        _private.append(logs)
    terminate_by_exception()


_private: list[Path] = []  # the logs of the Ray that `join_ray` has started


def _leave_private_ray() -> None:
    """Stops the Ray that `join_ray` has started, while its last words still go to the log."""
    if _private:
        leave_ray()


def logical_cpus() -> int:
    """CPUs that a private Ray offers: those of this machine, and `LAPTOP_CPUS` at least.

    On a laptop trainers and decoders share two cores, so more are offered than exist. GPUs are those that Ray finds.
    """
    return max(LAPTOP_CPUS, os.cpu_count() or 1)


def leave_ray() -> None:
    """Leaves the cluster; a private one is stopped with all of its processes."""
    import ray

    ray.shutdown()
    _private.clear()
