"""Where the files of a run are: every path below `<storage>/<run>`, and below the folder that Ray Train keeps.

Ray Train's folder has the name of the fit, which is the pipeline's: that of the run itself if it has one stage.

    <storage>/<run>/recipe.json                the resolved recipe
                    metrics/  tensorboard/     rows of all steps
                    validation/                figures and drawings of checkpoints
                    events/  attempts/         what happened, and each start of the workers: a JSON object each
                    ledger/  quarantine.json   samples that are left out
                    shards/  rejected/         files of checkpoints, and notes of those that could not be loaded
                    final/                     the result
                    evaluation/                scores
"""

from blip3o import storage

EVENTS, ATTEMPTS, SHARDS, REJECTED = "events", "attempts", "shards", "rejected"
SNAPSHOT = "checkpoint_manager_snapshot.json"  # as Ray Train calls it


def run_uri(storage_uri: str, run: str) -> str:
    """The folder of a run."""
    return storage.join(storage_uri, run)


def recipe_uri(storage_uri: str, run: str) -> str:
    """The resolved recipe with which the run began, or went on, last."""
    return storage.join(storage_uri, run, "recipe.json")


def metrics_folder(storage_uri: str, run: str) -> str:
    """The rows of all steps: files of JSON lines, one for each interval."""
    return storage.join(storage_uri, run, "metrics")


def tensorboard_folder(storage_uri: str, run: str) -> str:
    """What `tensorboard --logdir` is given."""
    return storage.join(storage_uri, run, "tensorboard")


def validation_folder(storage_uri: str, run: str) -> str:
    """Validations: `STEP.json` with the figures, `STEP.png` with the drawings."""
    return storage.join(storage_uri, run, "validation")


def validation_uri(storage_uri: str, run: str, step: int, *, suffix: str = "json") -> str:
    """The figures (or drawings, with suffix png) of the checkpoint after so many steps."""
    return storage.join(validation_folder(storage_uri, run), f"{step:08d}.{suffix}")


def events_folder(storage_uri: str, run: str) -> str:
    """What went wrong, an object each."""
    return storage.join(storage_uri, run, EVENTS)


def attempts_folder(storage_uri: str, run: str) -> str:
    """The starts of the workers, an object each."""
    return storage.join(storage_uri, run, ATTEMPTS)


def ledger_uri(storage_uri: str, run: str) -> str:
    """The ledger of samples that the run has left out."""
    return storage.join(storage_uri, run, "ledger")


def quarantine_uri(storage_uri: str, run: str) -> str:
    """The samples that the run has learned to leave out."""
    return storage.join(storage_uri, run, "quarantine.json")


def shards_folder(storage_uri: str, run: str) -> str:
    """The files of all checkpoints."""
    return storage.join(storage_uri, run, SHARDS)


def rejected_folder(storage_uri: str, run: str) -> str:
    """Notes of checkpoints that could not be loaded."""
    return storage.join(storage_uri, run, REJECTED)


def final_uri(storage_uri: str, run: str) -> str:
    """The folder of the run's result."""
    return storage.join(storage_uri, run, "final")


def evaluation_uri(storage_uri: str, run: str) -> str:
    """Where a run's scores go unless another place is named."""
    return storage.join(storage_uri, run, "evaluation")


def held_out_name(run: str) -> str:
    """The name under which validations keep a ledger of their own: a folder within the run's."""
    return f"{run}/held-out"


def fit_uri(storage_uri: str, fit_name: str) -> str:
    """The folder in which Ray Train keeps what it knows of a fit."""
    return storage.join(storage_uri, fit_name)


def snapshot_uri(storage_uri: str, fit_name: str) -> str:
    """Ray Train's list of the checkpoints that are committed."""
    return storage.join(storage_uri, fit_name, SNAPSHOT)
