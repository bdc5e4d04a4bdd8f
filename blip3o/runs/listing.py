"""Lists the runs below a storage, and reads the complete history of a run."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blip3o import storage
from blip3o.runs.paths import (
    EVALUATION,
    attempts_folder,
    evaluation_uri,
    events_folder,
    recipe_uri,
    validation_folder,
)
from blip3o.runs.recipes import read_recipe
from blip3o.runs.results import is_finished
from blip3o.runs.rows import Row, newest_row, read_rows


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The progress of a run.

    `done` counts the optimizer steps with a written row, of `steps`; `loss` is the newest, `age` seconds old.
    """

    run: str
    stage: str
    finished: bool
    done: int
    steps: int
    loss: float | None
    age: float | None


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """The history of a run: rows, validations and image grids (PNG) by step; events and attempts by time.

    `evaluation` are the figures of `blip3o evaluate` in its default folder; None if there are none.
    """

    name: str
    recipe: Mapping[str, Any]
    rows: Sequence[Row]
    validations: Sequence[Row]
    drawings: Mapping[int, bytes]
    events: Sequence[Row]
    attempts: Sequence[Row]
    finished: bool
    evaluation: Mapping[str, Any] | None


def list_runs(storage_uri: str) -> list[RunState]:
    """The runs (stages) below a storage, by name. Raises `StorageError` if the store refuses."""
    names = storage.list_folders(storage_uri)
    return [_state(storage_uri, name) for name in names if storage.exists(recipe_uri(storage_uri, name))]


def _state(storage_uri: str, run: str) -> RunState:
    recipe, newest = read_recipe(storage_uri, run), newest_row(storage_uri, run)
    return RunState(
        run=run,
        stage=recipe["stage"]["name"],
        finished=is_finished(storage_uri, run),
        done=newest["step"] + 1 if newest else 0,
        steps=recipe["optim"]["steps"],
        loss=newest["loss"] if newest else None,
        age=time.time() - newest["time"] if newest else None,
    )


def read_history(storage_uri: str, run: str) -> RunHistory:
    """Reads the history of a run. Raises `DataError` if there is no such run."""
    recipe, validations = read_recipe(storage_uri, run), validation_folder(storage_uri, run)
    pictures = storage.list_files(validations, suffix=".png")
    return RunHistory(
        name=run,
        recipe=recipe,
        rows=read_rows(storage_uri, run),
        validations=_objects(validations),
        drawings={_step_of(file.uri): storage.read_bytes(file.uri) for file in pictures},
        events=_objects(events_folder(storage_uri, run)),
        attempts=read_attempts(storage_uri, run),
        finished=is_finished(storage_uri, run),
        evaluation=_evaluation(storage_uri, run),
    )


def _evaluation(storage_uri: str, run: str) -> dict[str, Any] | None:
    uri = storage.join(evaluation_uri(storage_uri, run), EVALUATION)
    return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None


def read_attempts(storage_uri: str, run: str) -> list[Row]:
    """The attempts (starts of the workers) of a run that reached a step, in order."""
    return _objects(attempts_folder(storage_uri, run))


def validations(storage_uri: str, run: str) -> dict[int, str]:
    """The URIs of the validations' metrics, by step."""
    files = storage.list_files(validation_folder(storage_uri, run), suffix=".json")
    return {_step_of(file.uri): file.uri for file in files}


def _objects(folder: str) -> list[Row]:
    """The JSON objects in a folder, in the order of file names; subfolders are left out."""
    prefix = storage.normalize(folder) + "/"
    files = [file.uri for file in storage.list_files(folder, suffix=".json")]
    return [json.loads(storage.read_bytes(uri)) for uri in files if "/" not in uri.removeprefix(prefix)]


def _step_of(uri: str) -> int:
    return int(uri.rsplit("/", 1)[1].split(".")[0])
