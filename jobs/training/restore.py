"""How a worker goes on from a checkpoint: checked file by file, and resharded if it was of another number of workers.

At the same number, a rank reads its own shards and rank 0's, and the state is what it was to the bit. At another one,
each node reads all shards once and makes DeepSpeed's universal form of them, from which every rank takes its share.
"""

import shutil
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist

from blip3o.config.recipe import Recipe
from blip3o.runs.checkpoints import lists_uri, shards_uri
from blip3o.train.checkpoint import state as checkpoint
from blip3o.train.checkpoint.files import DamagedCheckpointError, RankFiles, pull, read_lists
from blip3o.train.checkpoint.resume import ResumePoint
from blip3o.train.ema import Ema


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a stage goes on: after `step` steps, from what the ranks of `lists` saved; from nothing at step 0.

    `universal` if it must be resharded: the optimizer's state is spread over another number of ranks than these.
    """

    step: int
    lists: tuple[RankFiles, ...] = ()
    universal: bool = False


def find_start(recipe: Recipe, point: ResumePoint, *, fit_name: str) -> Start:
    """The checkpoint at a stage's resume point. `fit_name` is the name under which Ray Train knows the run.

    Raises `DamagedCheckpointError`, on every rank, if a rank's list of files is missing.
    """
    if point.source != "checkpoint":
        return Start(step=0)
    damage, lists = None, []
    try:
        lists = read_lists(lists_uri(recipe, fit_name, point.step))
    except DamagedCheckpointError as error:
        damage = str(error)
    _agree(damage)
    reshaped = len(lists) != dist.get_world_size() and recipe.parallel.zero_stage > 0
    return Start(step=point.step, lists=tuple(lists), universal=reshaped)


def restore(
    engine: Any,  # noqa: ANN401 - a DeepSpeedEngine
    recipe: Recipe,
    identity: str,
    start: Start,
    average: Ema | None,
) -> dict[str, Any]:
    """Loads the checkpoint into an engine, which was built for a universal one if `start.universal`, and its average.

    Returns the state that was saved with them.

    Raises `DamagedCheckpointError`, on every rank, if a file is missing or is not what was written, and
    `CheckpointError` as `checkpoint.load`.
    """
    if start.step == 0:
        return {}
    directory = _shared_directory() if start.universal else Path(tempfile.mkdtemp(prefix="blip3o-restore-"))
    first = ray.train.get_context().get_local_rank() == 0
    try:
        _agree(_fetch(recipe, start, directory, first_of_node=first))
        _, state = checkpoint.load(
            engine, str(directory), identity=identity, universal=start.universal, average=average
        )
        dist.barrier()  # the directory may be another rank's too
    finally:
        if first or not start.universal:
            shutil.rmtree(directory, ignore_errors=True)
    return state


def _shared_directory() -> Path:
    """One directory for all ranks of a node, of a name that no other attempt has."""
    name: list[str | None] = [uuid.uuid4().hex]
    dist.broadcast_object_list(name, src=0)
    return Path(tempfile.gettempdir()) / f"blip3o-restore-{name[0]}"


def _fetch(recipe: Recipe, start: Start, directory: Path, *, first_of_node: bool) -> str | None:
    """Copies what this rank is to load into the directory; what is wrong with it, if anything is."""
    if start.universal and not first_of_node:
        return None
    count = len(start.lists)
    ranks: Sequence[int] = range(count) if start.universal else sorted({0, min(dist.get_rank(), count - 1)})
    try:
        for rank in ranks:
            pull(shards_uri(recipe, start.step), start.lists[rank], directory)
    except DamagedCheckpointError as damage:
        return str(damage)
    if start.universal:
        checkpoint.make_universal(directory)
    return None


def _agree(damage: str | None) -> None:
    """Raises `DamagedCheckpointError` on every rank if one found damage: a rank that went on would wait forever."""
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, damage)
    messages = sorted({it for it in found if it is not None})
    if messages:
        raise DamagedCheckpointError("; ".join(messages))
