"""Attempts: every start of a run's workers, with the times of its phases up to the first step, as one JSON object."""

import json
import time

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.runs.paths import attempts_folder


class Attempt:
    """A start of the workers. Its time begins when the object is created; times are in seconds since 1970."""

    def __init__(self, recipe: Recipe, *, workers: int) -> None:
        self._folder = attempts_folder(recipe.run.storage, recipe.run.name)
        self._workers = workers
        self._times = {"began": time.time()}
        self._written = False

    def mark(self, phase: str) -> None:
        """Records the end of a phase."""
        self._times[phase] = time.time()

    def record_first_step(self, step: int, *, data_wait: float, seconds: float) -> None:
        """Writes the record after the first step, which took `seconds`; later calls do nothing."""
        if self._written:
            return
        self._written = True
        now = time.time()
        times = self._times | {"first_batch": now - seconds + data_wait, "first_step": now}
        name = f"{int(times['began'] * 1000):014d}.json"
        record = {"step": step, "workers": self._workers, **times}
        storage.write_bytes(storage.join(self._folder, name), json.dumps(record).encode())
