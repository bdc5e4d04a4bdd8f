"""Hashes of the weights of finished runs that take minutes to compute, kept in a run's folder.

They count as long as the weights are the same file: their key has the result's own sha256, and size and version of the
file in the store, so a file that was replaced is hashed again, also if its description was not.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence

from blip3o import storage
from blip3o.errors import StorageError
from blip3o.runs.paths import final_uri, hash_uri
from blip3o.runs.results import WEIGHTS, require_finished

logger = logging.getLogger(__name__)


def stored_hash(storage_uri: str, runs: Sequence[str], about: Mapping[str, str], compute: Callable[[], str]) -> str:
    """The hash that `compute()` finds from the weights of these runs and `about`; computed if it is not stored yet.

    It is stored with the last of the runs. Raises `ConfigError` if one has not finished, and as `compute`.
    """
    files = [_identity(storage_uri, run) for run in runs]
    key = hashlib.sha256(json.dumps([files, sorted(about.items())]).encode()).hexdigest()
    location = hash_uri(storage_uri, runs[-1], key[:32])
    if storage.exists(location):
        return str(json.loads(storage.read_bytes(location))["sha256"])
    found = compute()
    try:
        storage.write_bytes(location, json.dumps({"sha256": found, "runs": list(runs), **about}).encode())
    except StorageError as error:  # runs of others may be read-only: it is computed again next time
        logger.info("the hash of %s is not kept: %s", ", ".join(runs), error)
    return found


def _identity(storage_uri: str, run: str) -> list[str]:
    """What changes when the weights of a run do."""
    file = storage.stat(storage.join(final_uri(storage_uri, run), WEIGHTS))
    return [run, require_finished(storage_uri, run)["sha256"], str(file.size), file.version]
