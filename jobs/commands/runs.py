"""`blip3o runs` and `blip3o report`: the runs under a storage, what two of them differ in, and one run's page."""

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip3o.errors import DataError

if TYPE_CHECKING:
    from blip3o.evaluate.reports.run import RunRecord

STORAGE = "s3://blip3o/runs"  # of the shipped recipes


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How far a run is: optimizer steps done (whose rows are written) of all, newest loss, and the seconds since."""

    run: str
    stage: str
    finished: bool
    done: int
    steps: int
    loss: float | None
    age: float | None


Storage = Annotated[str, typer.Option(help="URI under which runs are stored (run.storage of their recipes)")]


def runs(
    storage: Storage = STORAGE,
    diff: Annotated[tuple[str, str] | None, typer.Option(help="two runs whose recipes to compare")] = None,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="as one JSON array (or object, with --diff) on stdout")
    ] = False,
) -> None:
    """List runs: stage, state, steps, newest loss. With --diff A B, what differs between two runs' recipes."""
    if diff is not None:
        differing = compare(storage, *diff)
        print(json.dumps(differing, indent=1) if as_json else _difference(differing))
        return
    states = list_runs(storage)
    if as_json:
        print(json.dumps([vars(state) for state in states], indent=1))
        return
    if not states:
        print(f"no runs under {storage}")
        return
    width = max(len(state.run) for state in states)
    for state in states:
        print(_line(state, width))


def report(
    run: Annotated[str, typer.Argument(help="name of the run")],
    storage: Storage = STORAGE,
    out: Annotated[str | None, typer.Option("-o", "--out", help="URI of the page; RUN.html if left out")] = None,
) -> None:
    """Write a run's page: curves, speed, validations by noise level, drawings, events, recipe."""
    from blip3o.evaluate.reports.run import render_run
    from blip3o.storage import write_bytes

    uri = f"{run}.html" if out is None else out
    write_bytes(uri, render_run(read_run(storage, run)).encode())
    print(f"wrote {uri}")


def list_runs(storage_uri: str) -> list[RunState]:
    """The runs (stages) below a storage, by name. Raises `StorageError` if the store refuses."""
    from blip3o import storage
    from blip3o.runs.paths import recipe_uri

    names = storage.list_folders(storage_uri)
    return [_state(storage_uri, name) for name in names if storage.exists(recipe_uri(storage_uri, name))]


def _state(storage_uri: str, run: str) -> RunState:
    from blip3o import storage
    from blip3o.runs.paths import metrics_folder
    from blip3o.train.weights import final_uri, read_description

    recipe = read_recipe(storage_uri, run)
    files = storage.list_files(metrics_folder(storage_uri, run), suffix=".jsonl")
    newest = json.loads(storage.read_bytes(files[-1].uri).splitlines()[-1]) if files else None
    return RunState(
        run=run,
        stage=recipe["stage"]["name"],
        finished=read_description(final_uri(storage_uri, run)) is not None,
        done=newest["step"] + 1 if newest else 0,
        steps=recipe["optim"]["steps"],
        loss=newest["loss"] if newest else None,
        age=time.time() - newest["time"] if newest else None,
    )


def read_recipe(storage_uri: str, run: str) -> dict[str, Any]:
    """The resolved recipe of a run, as nested values. Raises `DataError` if there is no such run."""
    from blip3o import storage
    from blip3o.runs.paths import recipe_uri

    uri = recipe_uri(storage.normalize(storage_uri), run)
    if not storage.exists(uri):
        raise DataError(f"{storage_uri} has no run '{run}': blip3o runs --storage {storage_uri} lists them")
    return json.loads(storage.read_bytes(uri))


def compare(storage_uri: str, one: str, other: str) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two runs' recipes differ, with both values; None where one has no such key.

    Raises `DataError` if there is no such run.
    """
    from blip3o.config.flat import flattened

    first, second = (flattened(read_recipe(storage_uri, run)) for run in (one, other))
    keys = [*first, *(key for key in second if key not in first)]
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def read_run(storage_uri: str, run: str) -> "RunRecord":
    """All that a run has left. Raises `DataError` if there is no such run."""
    from blip3o import storage
    from blip3o.data.images.decode import open_image
    from blip3o.evaluate.reports.run import RunRecord
    from blip3o.runs.paths import ATTEMPTS, EVENTS, validation_folder
    from blip3o.train.weights import final_uri, read_description

    recipe = read_recipe(storage_uri, run)
    folder = validation_folder(storage_uri, run)
    pictures = storage.list_files(folder, suffix=".png")
    drawings = {_step_of(it.uri): open_image(storage.read_bytes(it.uri)) for it in pictures}
    return RunRecord(
        name=run,
        recipe=recipe,
        rows=read_rows(storage_uri, run),
        validations=_objects(folder),
        drawings=drawings,
        events=_objects(storage.join(storage_uri, run, EVENTS)),
        attempts=_objects(storage.join(storage_uri, run, ATTEMPTS)),
        finished=read_description(final_uri(storage_uri, run)) is not None,
    )


def read_rows(storage_uri: str, run: str) -> list[dict[str, Any]]:
    """All rows of a run so far, in the order of steps."""
    from blip3o import storage
    from blip3o.runs.paths import metrics_folder

    files = storage.list_files(metrics_folder(storage_uri, run), suffix=".jsonl")
    rows = [json.loads(line) for file in files for line in storage.read_bytes(file.uri).splitlines()]
    # A run that fell back to an older checkpoint may have cut its intervals elsewhere: the newest row of a step counts.
    ordered = sorted(rows, key=lambda row: (row["step"], row.get("time", 0.0)))
    return list({row["step"]: row for row in ordered}.values())


def _objects(folder: str) -> list[dict[str, Any]]:
    """The JSON objects of a folder, by the names of their files; those below it in folders of their own are not its."""
    from blip3o import storage

    prefix = storage.normalize(folder) + "/"
    files = [file.uri for file in storage.list_files(folder, suffix=".json")]
    return [json.loads(storage.read_bytes(uri)) for uri in files if "/" not in uri.removeprefix(prefix)]


def _step_of(uri: str) -> int:
    return int(uri.rsplit("/", 1)[1].split(".")[0])


def _line(state: RunState, width: int) -> str:
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
