"""`blip3o runs` and `blip3o report`: the runs under a storage, the differences of two, and the page of one or several.

Reads through `blip3o.runs`, which is imported when a command runs: that saves `blip3o --help` 0.15 s.
"""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from blip3o.evaluate.reports.run import RunRecord
    from blip3o.runs.listing import RunState

STORAGE = "runs"  # of the shipped recipes
DEMO_RUNS = "the demo's: `blip3o store runs/demo`, then s3://blip3o/runs"

Storage = Annotated[str, typer.Option(help="URI under which runs are stored (run.storage of their recipes).")]


def runs(
    storage: Storage = STORAGE,
    diff: Annotated[tuple[str, str] | None, typer.Option(help="Compare the recipes of two runs.")] = None,
    pull: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="RUN FOLDER", help="Copy a run's metrics and history, without weights, to a local folder."
        ),
    ] = None,
    copy: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="RUN URI", help="Copy a run, or those of a pipeline, with checkpoints, to another run.storage."
        ),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array, or one object with --diff.")] = False,
) -> None:
    """List runs with stage, state, steps and last loss; --diff compares two recipes, --pull copies a run's history,
    and --copy all of it: as a backup, or back.
    """
    from blip3o.runs.listing import list_runs
    from blip3o.runs.recipes import diff_recipes

    if diff is not None:
        differing = diff_recipes(storage, *diff)
        print(json.dumps(differing, indent=1) if as_json else _difference(differing))
        return
    if pull is not None:
        _pull(storage, *pull)
        return
    if copy is not None:
        _copy(storage, *copy)
        return
    states = list_runs(storage)
    if as_json:
        print(json.dumps([vars(state) for state in states], indent=1))
        return
    if not states:
        print(f"no runs under {storage}: give --storage, as run.storage in their recipe ({DEMO_RUNS})")
        return
    width = max(len(state.run) for state in states)
    for state in states:
        print(_line(state, width))


def _pull(storage_uri: str, run: str, folder: str) -> None:
    from blip3o.runs.pulling import pull_run

    print(f"wrote {pull_run(storage_uri, run, folder)} files to {folder}/{run}: tensorboard --logdir {folder}")


def _copy(storage_uri: str, run: str, target: str) -> None:
    from blip3o.train.checkpoint.backup import copy_run
    from jobs.commands.progress import bar

    with bar(f"copy {run}") as progress:
        copied = copy_run(storage_uri, run, target, on_progress=progress)
    print(f"copied {copied.files} files of {', '.join(copied.runs)} to {target}, with the sha256 of their checkpoints")
    for name, step in copied.resumes.items():
        print(f"{name} resumes after step {step}" if step else f"{name} starts from step 0: it has no checkpoint yet")
    if copied.needed:
        print(f"not copied, and needed (stage.start_from): {', '.join(copied.needed)}")


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Name of the run, or of several to compare.")],
    storage: Storage = STORAGE,
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="URI of the page; RUN.html, or RUN-vs-RUN.html, if omitted.")
    ] = None,
) -> None:
    """Write a run's report: curves, speed, validations by noise level, sample images, events, recipe. Of several runs:
    their curves over each other, their last figures and scores side by side, and what differs in their recipes.
    """
    from blip3o.evaluate.reports.comparison import render_comparison
    from blip3o.evaluate.reports.run import render_run
    from blip3o.storage import write_bytes

    uri = f"{'-vs-'.join(runs)}.html" if out is None else out
    found = [read_run(storage, run) for run in runs]
    write_bytes(uri, (render_run(found[0]) if len(found) == 1 else render_comparison(found)).encode())
    print(f"wrote {uri}")


def read_run(storage_uri: str, run: str) -> "RunRecord":
    """Everything that a run has written, for its report. Raises `DataError` if there is no such run."""
    from blip3o.data.images.decode import open_image
    from blip3o.evaluate.reports.run import RunRecord
    from blip3o.runs.listing import read_history

    history = read_history(storage_uri, run)
    drawings = {step: open_image(png) for step, png in history.drawings.items()}
    return RunRecord(**vars(history) | {"drawings": drawings})


def _line(state: "RunState", width: int) -> str:
    word = "finished" if state.finished else "unfinished"
    loss = "" if state.loss is None else f"loss {state.loss:.4g}"
    age = "" if state.age is None or state.finished else f"{_ago(state.age)} ago"
    return (
        f"{state.run:{width}s}  {state.stage:10s}  {word:10s}  {state.done:>7d}/{state.steps}  {loss}  {age}".rstrip()
    )


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _difference(differing: dict[str, tuple[Any, Any]]) -> str:
    return "\n".join(f"{key}: {one} → {other}" for key, (one, other) in differing.items()) or "the same recipe"
