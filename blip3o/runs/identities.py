"""What decides the numbers of a run, recorded when it trains: it names what has changed where identities differ.

An identity is a sha256 of these values (`blip3o.train.checkpoint.state`).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.errors import one_line
from blip3o.runs.paths import identity_uri
from blip3o.runs.recipes import diff_values

Deciding = Mapping[str, Any]

_SECTIONS = ("data", "model", "stage", "optim")
_LISTS = ("data_sha256", "start")
MOST = 20  # differences that a message names


def write_identity(recipe: Recipe, identity: str, deciding: Deciding) -> None:
    """Records the identity that the run trains with, and what it was computed from. Raises `StorageError`."""
    record = {"identity": identity, "deciding": deciding}
    storage.write_bytes(identity_uri(recipe.run.storage, recipe.run.name), json.dumps(record, indent=1).encode())


def read_identity(recipe: Recipe) -> tuple[str, Deciding] | None:
    """The identity that was recorded under the run's name, and what it was computed from.

    None for a run that has not trained, or did before identities were recorded.
    """
    uri = identity_uri(recipe.run.storage, recipe.run.name)
    if not storage.exists(uri):
        return None
    record = json.loads(storage.read_bytes(uri))
    return record["identity"], record["deciding"]


def changes(recipe: Recipe, identity: str, after: Deciding) -> str:
    """What differs from the run's `identity`, for a message: `another recipe or other data (optim.lr: 0.1 → 0.2)`.

    Nothing is named if that identity was not recorded.
    """
    recorded = read_identity(recipe)
    known = recorded is not None and recorded[0] == identity
    named = list(_changes(recorded[1], json.loads(json.dumps(after)))) if recorded and known else []
    if not named:
        return "another recipe or other data"
    more = f"; and {len(named) - MOST} more" if len(named) > MOST else ""
    return f"another recipe or other data ({'; '.join(named[:MOST])}{more})"


def _changes(before: Deciding, after: Deciding) -> Iterator[str]:
    keys = diff_values(_by_key(before), _by_key(after))
    yield from (f"{key}: {_shown(old)} → {_shown(new)}" for key, (old, new) in keys.items())
    changed = list(_changed_data(before, after))
    yield from changed
    # Its fingerprint follows from the others, so it is named only if nothing else explains it.
    orders = [values["data_sha256"][:1] for values in (before, after)]
    if orders[0] != orders[1] and not changed and not any(map(_moves_the_order, keys)):
        yield "the order of the samples: another selection or length of captions, or another version of blip3o"
    if before["stage"]["start_from"] == after["stage"]["start_from"]:
        pairs = zip(after["stage"]["start_from"], before["start"], after["start"], strict=True)
        yield from (f"the weights of run '{run}' in stage.start_from" for run, old, new in pairs if old != new)


def _by_key(values: Deciding) -> dict[str, Any]:
    """The recipe's keys of these values, nested as in a recipe."""
    sections = {name: values[name] for name in _SECTIONS}
    others = {name: value for name, value in values.items() if name not in (*_SECTIONS, *_LISTS, "seed")}
    return {**sections, "run": {"seed": values["seed"]}, "parallel": others}


def _changed_data(before: Deciding, after: Deciding) -> Iterator[str]:
    """Files that the recipe names in the same way, and that are other files now."""
    old, new = (_data(values) for values in (before, after))
    yield from (name for name in new if name in old and old[name] != new[name])


def _data(values: Deciding) -> dict[str, str]:
    """The hashes of the data, by what they are of."""
    sources = [source["name"] for source in values["data"]["sources"]]
    names = [f"the index of source '{name}'" for name in sources] + [values["data"]["tokenizer"], "the stored features"]
    return dict(zip(names, values["data_sha256"][1:], strict=False))


def _moves_the_order(key: str) -> bool:
    return key.startswith(("data.", "run.seed", "optim.micro_batch"))


def _shown(value: object) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), limit=60)
