"""The resolved recipe stored with a run, and the differences between two of them."""

import json
from typing import Any

from blip3o import storage
from blip3o.config.load import flattened
from blip3o.config.recipe import Recipe
from blip3o.errors import DataError
from blip3o.runs.paths import recipe_uri


def write_recipe(recipe: Recipe) -> None:
    """Stores the resolved recipe of a run that starts or resumes. Raises `StorageError`."""
    text = json.dumps(recipe.model_dump(mode="json"), indent=1)
    storage.write_bytes(recipe_uri(recipe.run.storage, recipe.run.name), text.encode())


def read_recipe(storage_uri: str, run: str) -> dict[str, Any]:
    """The resolved recipe of a run, as nested values. Raises `DataError` if there is no such run."""
    uri = recipe_uri(storage.normalize(storage_uri), run)
    if not storage.exists(uri):
        raise DataError(f"{storage_uri} has no run '{run}': blip3o runs --storage {storage_uri} lists them")
    return json.loads(storage.read_bytes(uri))


def diff_recipes(storage_uri: str, one: str, other: str) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two runs' recipes differ, with both values; None if one of them does not have the key.

    Raises `DataError` if a run does not exist.
    """
    first, second = (flattened(read_recipe(storage_uri, run)) for run in (one, other))
    keys = [*first, *(key for key in second if key not in first)]
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}
