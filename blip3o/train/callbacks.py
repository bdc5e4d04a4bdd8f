"""What may be added to the training loop without an edit of it: a metric, a profiler, whatever saves or reports.

A callback is one class; it overrides the moments it needs and goes into the list that `jobs.training.worker` gives to
the loop.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from blip3o.runs.attempts import Attempt


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one optimizer step did: loss and terms are global means, times are this rank's seconds.

    `checkpoint_stall` is what passed between the step before and this one: where a checkpoint was saved, its saving.
    `work` is what callbacks measured, summed over all ranks; `memory` this rank's peak so far, bytes.
    """

    step: int
    loss: float
    terms: dict[str, float]
    grad_norm: float
    lr: float
    samples: int
    seconds: float
    data_wait: float
    checkpoint_stall: float = 0.0
    work: dict[str, int] = field(default_factory=dict)
    memory: int = 0

    def row(self) -> dict[str, Any]:
        """One flat JSON row."""
        terms = {f"loss/{name}": value for name, value in self.terms.items()}
        times = {
            "seconds": self.seconds,
            "data_wait": self.data_wait,
            "checkpoint_stall": self.checkpoint_stall,
            "memory_bytes": self.memory,
        }
        figures = {"grad_norm": self.grad_norm, "lr": self.lr, "samples": self.samples, **self.work}
        return {"step": self.step, "loss": self.loss, **terms, **figures, **times}


class Callback:
    """The moments of the loop, in their order. At each, the callbacks of the list are called in the list's order.

    1. `on_start`, once.
    2. In every step: `measure` for each micro-batch, before any arithmetic; after the optimizer step, `after_step`;
       then `wants_checkpoint`, until one says yes. If one does, `on_checkpoint` of all: whatever must be stored before
       a checkpoint counts stands before the callback that saves it.
    3. `on_end`, once, after the last step. An error in the loop skips it.

    `on_phase` comes in between, as often as the loop turns to something that may take forever.

    Ranks may have different lists. A callback that takes part in a collective must be on all of them, and `measure` and
    `wants_checkpoint` must come to the same names and answer on all.
    """

    def on_start(self, step: int) -> None:
        """The first step will be number `step`."""

    def on_phase(self, doing: str) -> None:
        """This rank begins something, said in words."""

    def measure(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Counts of a micro-batch, which the loop sums over micro-batches and ranks into `StepRecord.work`."""
        return {}

    def after_step(self, done: int, record: StepRecord) -> None:
        """`done` steps are finished; `record` is the last one's."""

    def wants_checkpoint(self, done: int) -> bool:
        """Whether a checkpoint is to be saved after `done` steps."""
        return False

    def on_checkpoint(self, done: int, record: StepRecord) -> None:
        """A checkpoint is saved after `done` steps."""

    def on_end(self) -> None:
        """The last step is done."""


class Measure(Callback):
    """Measures every micro-batch with a function."""

    def __init__(self, count: Callable[[dict[str, Tensor]], dict[str, int]]) -> None:
        self._count = count

    def measure(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """What the function counts."""
        return self._count(dict(batch))


class AttemptMarker(Callback):
    """Completes the record of a start of the workers with its first step."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def after_step(self, done: int, record: StepRecord) -> None:
        """Only the first one writes."""
        self._attempt.stepped(done, data_wait=record.data_wait, seconds=record.seconds)
