"""Where the files of a run are, below `<storage>/<run>`. What else is there: `final/` (`blip3o.train.weights`)."""

from blip3o import storage

METRICS, TENSORBOARD, VALIDATION = "metrics", "tensorboard", "validation"
EVENTS, ATTEMPTS = "events", "attempts"  # what happened, and each start of the workers: a JSON object each


def metrics_folder(storage_uri: str, run: str) -> str:
    """The rows of all steps: files of JSON lines, one for each interval."""
    return storage.join(storage_uri, run, METRICS)


def tensorboard_folder(storage_uri: str, run: str) -> str:
    """What `tensorboard --logdir` is given."""
    return storage.join(storage_uri, run, TENSORBOARD)


def validation_folder(storage_uri: str, run: str) -> str:
    """Validations: `STEP.json` with the figures, `STEP.png` with the drawings."""
    return storage.join(storage_uri, run, VALIDATION)


def validation_uri(storage_uri: str, run: str, step: int, *, suffix: str = "json") -> str:
    """The figures (or drawings, with suffix png) of the checkpoint after so many steps."""
    return storage.join(validation_folder(storage_uri, run), f"{step:08d}.{suffix}")


def recipe_uri(storage_uri: str, run: str) -> str:
    """The resolved recipe with which the run began, or went on, last."""
    return storage.join(storage_uri, run, "recipe.json")
