"""What stops all ranks of a fit together, and what the driver does about it before it starts the next one.

A checkpoint that is damaged is put aside, and the run goes on from the one before. A step that went wrong is taken
again from the last checkpoint, without the samples that are behind it. Every decision is written to the store first, so
that a driver which is killed in between decides the same when the run is submitted again.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from blip3o.data.batches import build_micro_batches
from blip3o.data.inputs import StageInputs
from blip3o.errors import DataError
from blip3o.runs.events import write_event
from blip3o.runs.paths import quarantine_uri
from blip3o.runs.quarantine import Entry, read_quarantine, write_quarantine
from blip3o.train.checkpoint.resume import resume_point
from blip3o.train.checkpoint.store import reject
from blip3o.train.stages import stage_of

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


def recover(stages: Sequence[StageInputs], fit_name: str, interruption: Interruption) -> None:
    """Prepares the next fit so that it gets further than the one that was interrupted.

    Raises `CheckpointError` if no checkpoint is left, and `DataError` if the run has been rewound as often as it may.
    """
    inputs = next(it for it in stages if it.recipe.run.name == interruption.run)
    write_event(inputs.recipe, interruption.kind, interruption.step, interruption.message)
    if interruption.kind == "checkpoint":
        reject(inputs.recipe, fit_name, interruption.step, interruption.message)
    else:
        _rewind(inputs, interruption, start=resume_point(inputs.recipe, fit_name).step)


def _rewind(inputs: StageInputs, interruption: Interruption, *, start: int) -> None:
    """Puts the samples behind a bad step in quarantine, from the step on that the run goes back to."""
    recipe = inputs.recipe
    quarantine = read_quarantine(recipe)
    if len(quarantine.entries) >= recipe.guard.max_rewinds:
        raise DataError(
            f"{interruption.message}; the run was rewound {len(quarantine.entries)} times, guard.max_rewinds allows "
            f"{recipe.guard.max_rewinds}: lower optim.lr, or look at the samples in "
            f"{quarantine_uri(recipe.run.storage, recipe.run.name)}"
        )
    batches = build_micro_batches(inputs, stage_of(recipe).task)
    uids = tuple(uid for number in interruption.micro_batches for uid in batches.uids(number))
    since = start * recipe.optim.micro_batches
    entry = Entry(step=interruption.step, reason=f"quarantined: {interruption.message}", since=since, uids=uids)
    write_quarantine(recipe, quarantine.plus(entry))
    logger.error(
        "%s: run '%s' goes back to step %d and leaves out %s", interruption.message, interruption.run, start, list(uids)
    )
