"""Recovery: what stops all ranks of a fit together, and what the driver does before it starts the next fit.

A damaged checkpoint is rejected, and the run resumes from the previous one. A bad step is repeated from the last
checkpoint without the samples that caused it. Every decision is written to the store before it takes effect: a driver
that is killed in between comes to the same decision when the run is submitted again.
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
    """Why a stage's ranks stopped at `step`. It holds plain values because workers send it to the driver.

    - `stop`: the user wanted it; the checkpoint after `step` is saved.
    - `checkpoint`: the checkpoint after `step` is damaged.
    - `step`: the loss or gradient is bad; `micro_batches` are the numbers, within the stage, of those that caused it.
    - `workers`: the number of workers, `workers`, does not divide the micro-batches of a step.
    """

    run: str
    kind: Literal["stop", "checkpoint", "step", "workers"]
    step: int
    message: str
    micro_batches: tuple[int, ...] = ()
    workers: int = 0


def recover(stages: Sequence[StageInputs], fit_name: str, interruption: Interruption) -> None:
    """Prepares the next fit so that it does not stop at the same point again.

    Raises `CheckpointError` if no checkpoint is left, and `DataError` after `guard.max_rewinds` rewinds.
    """
    inputs = next(it for it in stages if it.recipe.run.name == interruption.run)
    write_event(inputs.recipe, interruption.kind, interruption.step, interruption.message)
    if interruption.kind == "checkpoint":
        reject(inputs.recipe, fit_name, interruption.step, interruption.message)
    else:
        _rewind(inputs, interruption, start=resume_point(inputs.recipe, fit_name).step)


def _rewind(inputs: StageInputs, interruption: Interruption, *, start: int) -> None:
    """Quarantines the samples that caused a bad step, starting at step `start`, to which the run is rewound."""
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
    # From the rewind point on: those steps are trained again. Earlier steps used the samples, and must stay
    # reproducible.
    since = start * recipe.optim.micro_batches
    entry = Entry(step=interruption.step, reason=f"quarantined: {interruption.message}", since=since, uids=uids)
    write_quarantine(recipe, quarantine.with_entry(entry))
    logger.error(
        "%s: run '%s' goes back to step %d and leaves out %s", interruption.message, interruption.run, start, list(uids)
    )
