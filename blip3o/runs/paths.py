"""The paths of a run: everything below `<storage>/<run>`, and below Ray Train's own folder.

Ray Train's folder has the name of the fit, which is the pipeline's name, or the run's if there is a single stage.

    <storage>/<run>/recipe.json                the resolved recipe
                    metrics/  tensorboard/     rows of all steps
                    validation/                metrics and image grids of checkpoints
                    events/  attempts/         what went wrong, and every start of the workers: a JSON object each
                    identity.json              what decides its numbers, and the sha256 of it
                    ledger/  quarantine.json   samples that are left out
                    shards/  rejected/         files of checkpoints, and notes on those that could not be loaded
                    final/                     the result
                    hashes/                    hashes of its weights that take long to compute
                    evaluation/                scores
"""

from blip3o import storage

EVENTS, ATTEMPTS, SHARDS, REJECTED = "events", "attempts", "shards", "rejected"
EVALUATION = "evaluation.json"  # the figures in a folder of scores on held-out data
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's name for it


def recipe_uri(storage_uri: str, run: str) -> str:
    """The resolved recipe of the latest submission."""
    return storage.join(storage_uri, run, "recipe.json")


def metrics_folder(storage_uri: str, run: str) -> str:
    """The rows of all steps: files of JSON lines, one for each interval."""
    return storage.join(storage_uri, run, "metrics")


def tensorboard_folder(storage_uri: str, run: str) -> str:
    """The log directory for `tensorboard --logdir`."""
    return storage.join(storage_uri, run, "tensorboard")


def validation_folder(storage_uri: str, run: str) -> str:
    """Validations: `STEP.json` with the metrics, `STEP.png` with the image grid."""
    return storage.join(storage_uri, run, "validation")


def validation_uri(storage_uri: str, run: str, step: int, *, suffix: str = "json") -> str:
    """The metrics (or the image grid, with suffix png) of the checkpoint after `step` steps."""
    return storage.join(validation_folder(storage_uri, run), f"{step:08d}.{suffix}")


def events_folder(storage_uri: str, run: str) -> str:
    """What went wrong: one JSON object per event."""
    return storage.join(storage_uri, run, EVENTS)


def attempts_folder(storage_uri: str, run: str) -> str:
    """The starts of the workers: one JSON object each."""
    return storage.join(storage_uri, run, ATTEMPTS)


def identity_uri(storage_uri: str, run: str) -> str:
    """What decides the numbers of the latest submission that trained."""
    return storage.join(storage_uri, run, "identity.json")


def ledger_uri(storage_uri: str, run: str) -> str:
    """The ledger of the samples that the run left out."""
    return storage.join(storage_uri, run, "ledger")


def quarantine_uri(storage_uri: str, run: str) -> str:
    """The samples that the run leaves out since they caused a bad step."""
    return storage.join(storage_uri, run, "quarantine.json")


def shards_folder(storage_uri: str, run: str) -> str:
    """The files of all checkpoints."""
    return storage.join(storage_uri, run, SHARDS)


def rejected_folder(storage_uri: str, run: str) -> str:
    """Notes on checkpoints that could not be loaded."""
    return storage.join(storage_uri, run, REJECTED)


def final_uri(storage_uri: str, run: str) -> str:
    """The folder of the run's result."""
    return storage.join(storage_uri, run, "final")


def hash_uri(storage_uri: str, run: str, key: str) -> str:
    """A hash of the result's weights, by what it was computed from."""
    return storage.join(storage_uri, run, "hashes", f"{key}.json")


def evaluation_uri(storage_uri: str, run: str) -> str:
    """The default folder of a run's scores."""
    return storage.join(storage_uri, run, "evaluation")


def held_out_name(run: str) -> str:
    """The run name that validations use for their own ledger: a folder within the run's."""
    return f"{run}/held-out"


def fit_uri(storage_uri: str, fit_name: str) -> str:
    """Ray Train's own folder for a fit."""
    return storage.join(storage_uri, fit_name)


def snapshot_uri(storage_uri: str, fit_name: str) -> str:
    """Ray Train's list of committed checkpoints."""
    return storage.join(storage_uri, fit_name, SNAPSHOT)
