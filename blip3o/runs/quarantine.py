"""The quarantine of a run: samples that it leaves out because they caused a bad step, starting at a given micro-batch.

The list only grows, and only between two fits. Whether a sample is left out depends on its uid and the number of the
micro-batch only. So a run that resumes, from any checkpoint, leaves out the same samples at the same steps.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.runs.paths import quarantine_uri


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A bad step: the reason, and the uids of the samples that are left out of all micro-batches from `since` on.

    `since` is the number of a micro-batch within the stage.
    """

    step: int
    reason: str
    since: int
    uids: tuple[str, ...]


class Quarantine:
    """The entries of a run, oldest first."""

    def __init__(self, entries: Sequence[Entry] = ()) -> None:
        self.entries = tuple(entries)

    def reason(self, uid: str, number: int) -> str | None:
        """Why a sample is left out of micro-batch `number`; None if it is not."""
        found = (it.reason for it in self.entries if number >= it.since and uid in it.uids)
        return next(found, None)

    def with_entry(self, entry: Entry) -> "Quarantine":
        """A copy with one more entry."""
        return Quarantine((*self.entries, entry))


def read_quarantine(recipe: Recipe) -> Quarantine:
    """The quarantine of a run; empty if there is none."""
    uri = quarantine_uri(recipe.run.storage, recipe.run.name)
    if not storage.exists(uri):
        return Quarantine()
    return Quarantine([Entry(**it | {"uids": tuple(it["uids"])}) for it in json.loads(storage.read_bytes(uri))])


def write_quarantine(recipe: Recipe, quarantine: Quarantine) -> None:
    """Replaces the quarantine of a run. Raises `StorageError` if it cannot be written."""
    data = json.dumps([asdict(it) for it in quarantine.entries], indent=1)
    storage.write_bytes(quarantine_uri(recipe.run.storage, recipe.run.name), data.encode())
