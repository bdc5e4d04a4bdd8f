"""Copies the history of a run to another place, mostly to a local folder, for programs that read nothing else.

Weights and checkpoints stay where they are, so the copy of a run that trained for weeks is small. It has the layout of
the original, and whatever reads the history of a run reads the copy, too.
"""

from blip3o import storage
from blip3o.runs.paths import (
    EVALUATION,
    attempts_folder,
    evaluation_uri,
    events_folder,
    final_uri,
    identity_uri,
    metrics_folder,
    quarantine_uri,
    recipe_uri,
    tensorboard_folder,
    validation_folder,
)
from blip3o.runs.recipes import read_recipe
from blip3o.runs.results import DESCRIPTION

_FOLDERS = (metrics_folder, tensorboard_folder, validation_folder, events_folder, attempts_folder)


def pull_run(storage_uri: str, run: str, folder: str) -> int:
    """Copies recipe, metrics, TensorBoard's files, validations, events, attempts and scores of a run to
    `<folder>/<run>`.

    Files that are there already are replaced. Returns how many files were copied. Raises `DataError` if there is no
    such run, `StorageError` if a store refuses.
    """
    read_recipe(storage_uri, run)
    place = (storage.normalize(storage_uri), run)
    scores, result = storage.join(evaluation_uri(*place), EVALUATION), storage.join(final_uri(*place), DESCRIPTION)
    single = (recipe_uri(*place), identity_uri(*place), quarantine_uri(*place), scores, result)
    found = [uri for uri in single if storage.exists(uri)]
    found += [file.uri for below in _FOLDERS for file in storage.list_files(below(*place))]
    for uri in found:
        storage.write_bytes(storage.join(folder, uri.removeprefix(f"{place[0]}/")), storage.read_bytes(uri))
    return len(found)
