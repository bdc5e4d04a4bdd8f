"""Copies runs with their checkpoints to another place, so that the copy resumes as the run would have.

A run may continue meanwhile: it commits checkpoints and prunes others. So the list of committed checkpoints is read
first and written last: everything that it vouches for is in the copy by then, and an interrupted copy is none.
What a checkpoint holds is compared with the sha256 that its ranks recorded.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from blip3o import storage
from blip3o.errors import CheckpointError
from blip3o.runs.checkpoints import checkpoint_name, parse_checkpoint_name
from blip3o.runs.paths import REJECTED, SHARDS, SNAPSHOT, final_uri, recipe_uri, snapshot_uri
from blip3o.runs.recipes import read_recipe
from blip3o.runs.results import DESCRIPTION, WEIGHTS, require_description
from blip3o.storage.copying import OnProgress, copy_files
from blip3o.train.checkpoint.files import DamagedCheckpointError, read_rank_lists

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # at a run that prunes its checkpoints while they are copied

Snapshots = Mapping[str, bytes]  # Ray Train's lists of committed checkpoints, by the name of the fit


@dataclass(frozen=True, kw_only=True)
class RunCopy:
    """What was copied: the names of `runs`, the number of `files`, and the step at which each unfinished run resumes.

    `needed` are runs that these start from, and that are not among them.
    """

    runs: tuple[str, ...]
    files: int
    resumes: Mapping[str, int]
    needed: tuple[str, ...]


def copy_run(storage_uri: str, run: str, target: str, *, on_progress: OnProgress = lambda done, total: None) -> RunCopy:
    """Copies a run, or all runs of a pipeline, from one `run.storage` to another. Files there are replaced.

    A stage of a pipeline comes with all stages, since they share a list of checkpoints. `on_progress` as for
    `copy_files`. Raises `DataError` if there is no such run, `CheckpointError` if no checkpoint of an unfinished one is
    whole, `StorageError` if a store refuses.
    """
    source = storage.normalize(storage_uri)
    for attempt in range(ATTEMPTS):
        try:
            return _copy(source, run, target, on_progress)
        except (storage.MissingFileError, DamagedCheckpointError) as error:
            if attempt == ATTEMPTS - 1:
                raise CheckpointError(
                    f"run '{run}' could not be copied whole: {error}; stop the run, and copy it again"
                ) from error
            logger.warning("%s: the run has pruned it, so it is copied again", error)
    raise AssertionError


def _copy(source: str, run: str, target: str, on_progress: OnProgress) -> RunCopy:
    snapshots = _snapshots_of(source, run)
    committed = _committed(snapshots)
    runs = sorted({run, *committed} - {fit for fit in snapshots if not storage.exists(recipe_uri(source, fit))})
    recipes = {name: read_recipe(source, name) for name in runs}
    finished = [name for name in runs if storage.exists(storage.join(final_uri(source, name), DESCRIPTION))]
    names = [
        name
        for folder in {*runs, *snapshots}
        for name in _names_below(source, folder)
        if _belongs(name, committed) and not name.endswith((f"/{SNAPSHOT}", f"/final/{DESCRIPTION}"))
    ]
    hashes = copy_files(names, source, target, on_progress=on_progress)
    whole = {
        name: _newest_whole(source, name, fit, steps, hashes)
        for fit, data in snapshots.items()
        for name, steps in _committed({fit: data}).items()
        if name not in finished
    }
    for name in finished:
        description = f"{name}/final/{DESCRIPTION}"
        _require_weights(source, name, hashes)
        copy_files([description], source, target)
    for fit, data in snapshots.items():
        storage.write_bytes(snapshot_uri(target, fit), data)
    resumes = {name: whole.get(name, 0) for name in runs if name not in finished}
    needed = {start for recipe in recipes.values() for start in recipe["stage"]["start_from"]} - set(runs)
    files = len(names) + len(finished) + len(snapshots)
    return RunCopy(runs=tuple(runs), files=files, resumes=resumes, needed=tuple(sorted(needed)))


def _snapshots_of(source: str, run: str) -> Snapshots:
    """The lists of the fits that a run belongs to: its own, or those of pipelines."""
    found: dict[str, bytes] = {}
    for fit in storage.list_folders(source):
        uri = snapshot_uri(source, fit)
        if storage.exists(uri):
            data = storage.read_bytes(uri)
            if fit == run or run in _committed({fit: data}):
                found[fit] = data
    return found


def _committed(snapshots: Snapshots) -> dict[str, list[int]]:
    """The steps of committed checkpoints by run, ascending. Raises `CheckpointError` for another format."""
    steps: dict[str, list[int]] = {}
    for fit, data in snapshots.items():
        try:
            folders = [result["checkpoint_dir_name"] for result in json.loads(data)["checkpoint_results"]]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{fit}/{SNAPSHOT} is not a snapshot as Ray 2.60 writes it") from error
        for name, step in map(parse_checkpoint_name, folders):
            steps.setdefault(name, []).append(step)
    return {name: sorted(found) for name, found in steps.items()}


def _names_below(source: str, folder: str) -> list[str]:
    return [file.uri.removeprefix(f"{source}/") for file in storage.list_files(storage.join(source, folder))]


def _belongs(name: str, committed: Mapping[str, list[int]]) -> bool:
    """Whether a file is no part of a checkpoint, or of one that is committed."""
    run, *below = name.split("/")
    if len(below) < 2 or below[0] != SHARDS:
        return True
    return below[1] in {checkpoint_name(run, step) for step in committed.get(run, ())}


def _require_weights(source: str, run: str, hashes: Mapping[str, str]) -> None:
    """Raises `DamagedCheckpointError` if the weights in the copy are not those that a finished run describes."""
    uri = final_uri(source, run)
    if hashes.get(f"{run}/final/{WEIGHTS}") != require_description(uri)["sha256"]:
        raise DamagedCheckpointError(f"{storage.join(uri, WEIGHTS)} is missing or is not the file that was written")


def _newest_whole(source: str, run: str, fit: str, steps: list[int], hashes: Mapping[str, str]) -> int:
    """The newest checkpoint of a run that is whole in the copy. Raises `DamagedCheckpointError` if there is none."""
    damage = f"run '{run}' has no checkpoint"
    for step in reversed(steps):
        if f"{run}/{REJECTED}/{step:08d}.json" in hashes:
            continue
        name = checkpoint_name(run, step)
        try:
            lists = read_rank_lists(storage.join(source, fit, name))
        except DamagedCheckpointError as error:
            damage = str(error)
            continue
        files = {f"{run}/{SHARDS}/{name}/{file.path}": file.sha256 for rank in lists for file in rank.files}
        wrong = [file for file, sha256 in files.items() if hashes.get(file) != sha256]
        if not wrong:
            return step
        damage = f"{storage.join(source, wrong[0])} is missing or is not the file that was written"
    raise DamagedCheckpointError(damage)
