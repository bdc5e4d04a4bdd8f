"""The resolved recipe stored with a run, and the differences between two of them."""

import json
from collections.abc import Iterator, Mapping, Sequence
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
    differing = diff_values(read_recipe(storage_uri, one), read_recipe(storage_uri, other))
    return {key: (mine, theirs) for key, (mine, theirs) in differing.items()}


def diff_values(*trees: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The dotted keys in which nested values differ, with the value in each tree; None where a tree lacks the key.

    Lists of mappings are compared entry by entry, as `data.sources[1].weight`. Any other list is one value.
    """
    return dict(_differing(trees, ""))


def _differing(values: Sequence[Any], key: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    parts = [_parts(value) for value in values]
    nested = [part for part in parts if part is not None]
    names = dict.fromkeys(name for part in nested for name in part)
    if len(nested) < len(values) or not names:
        if any(value != values[0] for value in values):
            yield key.removeprefix("."), tuple(values)
        return
    for name in names:
        yield from _differing([part.get(name) for part in nested], key + name)


def _parts(value: Any) -> dict[str, Any] | None:  # noqa: ANN401 - any value of a recipe
    """The values inside a value, by `.key` or `[number]`; None for a value that is compared as a whole."""
    if value is None:  # a section that one recipe leaves out
        return {}
    if isinstance(value, Mapping):
        return {f".{key}": part for key, part in value.items()}
    if isinstance(value, (list, tuple)) and all(isinstance(entry, Mapping) for entry in value):
        return {f"[{number}]": entry for number, entry in enumerate(value)}
    return None
