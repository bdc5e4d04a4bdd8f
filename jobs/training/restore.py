"""Restores a worker from a checkpoint: verifies every file, and reshards if the number of workers has changed.

With the same number of workers, a rank reads its own shards and those of rank 0, and the restored state is
bit-identical. With another number, each node downloads all shards once and converts them to DeepSpeed's universal
format, from which every rank loads its share.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist

from blip3o.config.recipe import Recipe
from blip3o.runs.checkpoints import lists_uri, shards_uri
from blip3o.train.checkpoint import state as checkpoint
from blip3o.train.checkpoint.files import DamagedCheckpointError, RankFiles, download_files, read_rank_lists
from blip3o.train.checkpoint.resume import ResumePoint
from blip3o.train.checkpoint.staging import new_folder
from blip3o.train.ema import Ema
from blip3o.train.initial_weights import call_on_first_rank


@dataclass(frozen=True, kw_only=True)
class Start:
    """The checkpoint that a stage starts from: after `step` steps, with the files in `lists`, one list for each rank.

    Step 0 means no checkpoint. `universal` if the optimizer's state must be resharded for another number of ranks.
    """

    step: int
    lists: tuple[RankFiles, ...] = ()
    universal: bool = False


def locate_start(recipe: Recipe, point: ResumePoint, *, fit_name: str) -> Start:
    """The checkpoint at a stage's resume point. `fit_name` is Ray Train's name for the run.

    Rank 0 reads the ranks' lists of files for all. Raises `DamagedCheckpointError`, on every rank, if one is missing.
    """
    if point.source != "checkpoint":
        return Start(step=0)
    lists = call_on_first_rank(lambda: read_rank_lists(lists_uri(recipe, fit_name, point.step)))
    # At ZeRO stage 0 every rank holds the whole state, so any number of ranks can load it as it is.
    resharded = len(lists) != dist.get_world_size() and recipe.parallel.zero_stage > 0
    return Start(step=point.step, lists=tuple(lists), universal=resharded)


def restore(
    engine: Any,  # noqa: ANN401 - a DeepSpeedEngine
    recipe: Recipe,
    identity: str,
    start: Start,
    ema: Ema | None,
) -> dict[str, Any]:
    """Loads the checkpoint into the engine and the moving average, and returns the state that was saved with them.

    If `start.universal`, the engine must have been built for a universal checkpoint. Raises `DamagedCheckpointError`,
    on every rank, if a file is missing or does not match its checksum, and `CheckpointError` as `checkpoint.load`.
    """
    if start.step == 0:
        return {}
    directory = _shared_directory() if start.universal else new_folder("restore")
    first = ray.train.get_context().get_local_rank() == 0
    try:
        _raise_on_every_rank(_download(recipe, start, directory, first_of_node=first))
        _, state = checkpoint.load(engine, str(directory), identity=identity, universal=start.universal, ema=ema)
        dist.barrier()  # other ranks of this node may still be reading a shared directory
    finally:
        if first or not start.universal:
            shutil.rmtree(directory, ignore_errors=True)
    return state


def _shared_directory() -> Path:
    """A directory for all ranks of a node, below the staging folder of the first of them."""
    context = ray.train.get_context()
    node, first = context.get_node_rank(), context.get_local_rank() == 0
    mine = (node, str(new_folder("restore"))) if first else None
    made: list[tuple[int, str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(made, mine)
    return Path(dict(it for it in made if it is not None)[node])


def _download(recipe: Recipe, start: Start, directory: Path, *, first_of_node: bool) -> str | None:
    """Downloads the files that this rank loads. Returns a message if one is damaged, else None."""
    if start.universal and not first_of_node:
        return None
    count = len(start.lists)
    # Without resharding: rank 0's files (the model's state) and this rank's own (its share of the optimizer's state).
    ranks: Sequence[int] = range(count) if start.universal else sorted({0, min(dist.get_rank(), count - 1)})
    try:
        for rank in ranks:
            download_files(shards_uri(recipe, start.step), start.lists[rank], directory)
    except DamagedCheckpointError as damage:
        return str(damage)
    if start.universal:
        checkpoint.make_universal(directory)
    return None


def _raise_on_every_rank(damage: str | None) -> None:
    """Raises `DamagedCheckpointError` on every rank if one found damage: a rank that continued would wait forever."""
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, damage)
    messages = sorted({it for it in found if it is not None})
    if messages:
        raise DamagedCheckpointError("; ".join(messages))
