"""What is known of a run's starts and ends beside its numbers: one small object each in the run's folder.

`attempts`: each start of the workers, with the times of its phases until its first step. `events`: what went wrong.
"""

import json
import time

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.runs.paths import ATTEMPTS, EVENTS


def run_uri(recipe: Recipe) -> str:
    """Where a stage's files are."""
    return storage.join(recipe.run.storage, recipe.run.name)


def note(recipe: Recipe, kind: str, step: int, message: str) -> None:
    """Writes an event of a run, for whoever asks later what happened. `time` is in seconds since 1970."""
    now = time.time()
    event = {"time": now, "kind": kind, "step": step, "message": message}
    name = f"{int(now * 1000):014d}-{kind}.json"
    storage.write_bytes(storage.join(run_uri(recipe), EVENTS, name), json.dumps(event).encode())


class Attempt:
    """A start of the workers, from the moment at which this is made; times are seconds since 1970."""

    def __init__(self, recipe: Recipe, *, workers: int) -> None:
        self._recipe, self._workers = recipe, workers
        self._times = {"began": time.time()}
        self._written = False

    def mark(self, phase: str) -> None:
        """A phase has ended."""
        self._times[phase] = time.time()

    def stepped(self, step: int, *, data_wait: float, seconds: float) -> None:
        """A step is done, in so many seconds: the first one completes the record."""
        if self._written:
            return
        self._written = True
        now = time.time()
        times = self._times | {"first_batch": now - seconds + data_wait, "first_step": now}
        name = f"{int(times['began'] * 1000):014d}.json"
        record = {"step": step, "workers": self._workers, **times}
        storage.write_bytes(storage.join(run_uri(self._recipe), ATTEMPTS, name), json.dumps(record).encode())
