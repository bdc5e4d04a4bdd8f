"""The resolved recipe stored with a run, and the differences between two of them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from blip3o import storage
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
    """The dotted keys in which two runs' recipes differ, with both values, as `diff_values`.

    Raises `DataError` if a run does not exist.
    """
    return diff_values(read_recipe(storage_uri, one), read_recipe(storage_uri, other))


def diff_values(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which nested values differ, with both values; None if one of them does not have the key.

    Lists of mappings are compared entry by entry, as `data.sources[1].weight`. Any other list is one value.
    """
    return dict(_differing(one, other, ""))


def _differing(one: Any, other: Any, key: str) -> Iterator[tuple[str, tuple[Any, Any]]]:  # noqa: ANN401 - any values
    mine, theirs = _parts(one), _parts(other)
    if mine is None or theirs is None or not {**mine, **theirs}:
        if one != other:
            yield key.removeprefix("."), (one, other)
        return
    for name in {**mine, **theirs}:
        yield from _differing(mine.get(name), theirs.get(name), key + name)


def _parts(value: Any) -> dict[str, Any] | None:  # noqa: ANN401 - as above
    """The values inside a value, by `.key` or `[number]`; None for a value that is compared as a whole."""
    if value is None:  # a section that one recipe leaves out
        return {}
    if isinstance(value, Mapping):
        return {f".{key}": part for key, part in value.items()}
    if isinstance(value, (list, tuple)) and all(isinstance(entry, Mapping) for entry in value):
        return {f"[{number}]": entry for number, entry in enumerate(value)}
    return None
