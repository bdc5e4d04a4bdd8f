"""What stops all ranks of a fit together, and what the driver does about it before it starts the next one.

A checkpoint that is damaged is put aside, and the run goes on from the one before. A step that went wrong is taken
again from the last checkpoint, without the samples that are behind it. Whatever is decided is written to the store
first, so that a driver which is killed in between decides alike when the run is submitted again.
"""

import logging
from dataclasses import dataclass
from typing import Literal

from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.recipe import Recipe
from blip3o.errors import DataError
from blip3o.runs.attempts import note, run_uri
from blip3o.runs.quarantine import Entry, read_quarantine, write_quarantine
from blip3o.train.checkpoint import store as committed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """Why a stage's ranks stopped at `step`; plain values, since it travels from the workers to the driver.

    `micro_batches` are the numbers, in the stage, of those behind a bad step; `workers` is their number, where so many
    cannot share a step's micro-batches.
    """

    run: str
    kind: Literal["checkpoint", "step", "workers"]
    step: int
    message: str
    micro_batches: tuple[int, ...] = ()
    workers: int = 0


def answer(pipeline: TrainingPipeline, features: list[str | None], interruption: Interruption) -> None:
    """Makes the next fit one that gets further. `features` are the sha256 of each stage's stored features, if any.

    Raises `CheckpointError` if no checkpoint is left, and `DataError` if the run has been rewound as often as it may.
    """
    stage = [recipe.run.name for recipe in pipeline.stages].index(interruption.run)
    recipe = pipeline.stages[stage]
    note(recipe, interruption.kind, interruption.step, interruption.message)
    if interruption.kind == "checkpoint":
        committed.reject(recipe, pipeline.name, interruption.step, interruption.message)
    else:
        _rewind(recipe, features[stage], interruption, start=committed.committed_step(recipe, pipeline.name))


def _rewind(recipe: Recipe, features_sha256: str | None, interruption: Interruption, *, start: int) -> None:
    """Puts the samples behind a bad step in quarantine, from the step on that the run goes back to."""
    from blip3o.data.batches import build_micro_batches
    from blip3o.train.stages import stage_of

    quarantine = read_quarantine(run_uri(recipe))
    if len(quarantine.entries) >= recipe.guard.max_rewinds:
        raise DataError(
            f"{interruption.message}; the run was rewound {len(quarantine.entries)} times, guard.max_rewinds allows "
            f"{recipe.guard.max_rewinds}: lower optim.lr, or look at the samples in {run_uri(recipe)}/quarantine.json"
        )
    batches = build_micro_batches(recipe, stage_of(recipe).task, features_sha256)
    uids = tuple(uid for number in interruption.micro_batches for uid in batches.uids(number))
    since = start * recipe.optim.micro_batches
    entry = Entry(step=interruption.step, reason=f"quarantined: {interruption.message}", since=since, uids=uids)
    write_quarantine(run_uri(recipe), quarantine.plus(entry))
    logger.error(
        "%s: run '%s' goes back to step %d and leaves out %s", interruption.message, interruption.run, start, list(uids)
    )
