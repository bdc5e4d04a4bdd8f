"""Events: what went wrong in a run, one JSON object each in the run's folder."""

import json
import time

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.runs.paths import events_folder


def write_event(recipe: Recipe, kind: str, step: int, message: str) -> None:
    """Writes an event of a run. Its `time` is in seconds since 1970."""
    now = time.time()
    event = {"time": now, "kind": kind, "step": step, "message": message}
    name = f"{int(now * 1000):014d}-{kind}.json"
    folder = events_folder(recipe.run.storage, recipe.run.name)
    storage.write_bytes(storage.join(folder, name), json.dumps(event).encode())
