"""Samples that a run has learned to leave out: each with the micro-batch from which on it does.

The list only grows, between two fits. Whether a sample is left out is a function of its uid and the micro-batch's
number, so that a run which is resumed, from whichever checkpoint, leaves out the same ones at the same steps.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.runs.paths import quarantine_uri


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A step that went wrong: why, the samples of the micro-batches behind it, and the number of the stage's
    micro-batch from which on they are left out.
    """

    step: int
    reason: str
    since: int
    uids: tuple[str, ...]


class Quarantine:
    """The entries of a run, in the order of their making."""

    def __init__(self, entries: Sequence[Entry] = ()) -> None:
        self.entries = tuple(entries)

    def reason(self, uid: str, number: int) -> str | None:
        """Why a sample is left out of micro-batch `number`; None if it is not."""
        found = (it.reason for it in self.entries if number >= it.since and uid in it.uids)
        return next(found, None)

    def plus(self, entry: Entry) -> "Quarantine":
        """With one more entry."""
        return Quarantine((*self.entries, entry))


def read_quarantine(recipe: Recipe) -> Quarantine:
    """The quarantine of a run, empty where there is none."""
    uri = quarantine_uri(recipe.run.storage, recipe.run.name)
    if not storage.exists(uri):
        return Quarantine()
    return Quarantine([Entry(**it | {"uids": tuple(it["uids"])}) for it in json.loads(storage.read_bytes(uri))])


def write_quarantine(recipe: Recipe, quarantine: Quarantine) -> None:
    """Replaces the quarantine of a run. Raises `StorageError` if it cannot be written."""
    data = json.dumps([asdict(it) for it in quarantine.entries], indent=1)
    storage.write_bytes(quarantine_uri(recipe.run.storage, recipe.run.name), data.encode())
