"""Callbacks extend the training loop without changing it: metrics, profilers, checkpoints, progress reports.

A callback is one class that overrides the hooks it needs. `jobs.training.worker` builds the loop's list of callbacks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from blip3o.runs.attempts import Attempt


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """The outcome of one optimizer step. Loss and terms are global means; times are this rank's seconds.

    `checkpoint_stall` is the time between the previous step and this one, mostly spent on saving a checkpoint if there
    was one. `work` holds the counts of `Callback.measure`, summed over all ranks. `memory` is this rank's peak in
    bytes.
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
    """The hooks of the loop, in the order of their calls. Each hook is called on all callbacks in the list's order.

    1. `on_start`, once.
    2. In every step: `measure` for each micro-batch and then `wants_stop`, after the work of all of them is launched
       and before the optimizer step; `after_step` after it; then `wants_checkpoint`, until one callback returns True.
       In that case, or if a callback of any rank wants to stop, `on_checkpoint` of all callbacks: whatever must be
       stored before a checkpoint counts comes before the callback that saves it.
    3. `on_end`, once, after the last step, or after the step in which a callback wanted to stop. An error in the loop
       skips it.

    `on_phase` is called in between, whenever the loop starts something that may hang.

    Ranks may have different lists. A callback that takes part in a collective must be on all ranks. `measure` must
    return the same names, and `wants_checkpoint` the same answer, on all ranks.
    """

    def on_start(self, step: int) -> None:
        """Training starts at step `step`."""

    def on_phase(self, phase: str) -> None:
        """This rank enters a phase, described in a few words."""

    def measure(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Counts for one micro-batch, whose tensors are on the CPU.

        The loop sums them over micro-batches and ranks into `StepRecord.work`.
        """
        return {}

    def wants_stop(self) -> bool:
        """Whether to save a checkpoint after this step and end. One rank's wish is enough; all of them end."""
        return False

    def after_step(self, done: int, record: StepRecord) -> None:
        """`done` steps are finished; `record` belongs to the last one."""

    def wants_checkpoint(self, done: int) -> bool:
        """Whether to save a checkpoint after `done` steps."""
        return False

    def on_checkpoint(self, done: int, record: StepRecord) -> None:
        """A checkpoint is being saved after `done` steps."""

    def on_end(self) -> None:
        """No step follows."""


class MicroBatchCounter(Callback):
    """Counts something in every micro-batch with a function."""

    def __init__(self, count: Callable[[dict[str, Tensor]], dict[str, int]]) -> None:
        self._count = count

    def measure(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """The counts of the function."""
        return self._count(dict(batch))


class AttemptRecorder(Callback):
    """Completes the record of an attempt (a start of the workers) with its first step."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def after_step(self, done: int, record: StepRecord) -> None:
        """Writes after the first step only."""
        self._attempt.record_first_step(done, data_wait=record.data_wait, seconds=record.seconds)
