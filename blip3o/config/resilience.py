"""How a run handles failures, as data: checkpoints, retries, guards, and an elastic number of workers."""

from typing import Self

from pydantic import Field, model_validator

from blip3o.config.base import Frozen, require


class WorkersConfig(Frozen):
    """An elastic number of training workers, which follows the cluster's resources."""

    min: int = Field(gt=0, description="smallest number of workers; with fewer, the run waits")
    max: int = Field(gt=0, description="largest number of workers")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        require(self.min <= self.max, f"parallel.workers: min {self.min} is above max {self.max}: swap them")
        return self


class CheckpointConfig(Frozen):
    """When to save checkpoints, which ones to keep, and how often to retry."""

    every: int = Field(gt=0, description="optimizer steps between checkpoints")
    keep: int = Field(default=2, gt=0, description="number of newest checkpoints to keep; one more while it is saved")
    keep_every: int | None = Field(
        default=None, gt=0, description="checkpoints at multiples of this many steps are kept permanently"
    )
    best: str | None = Field(
        default=None,
        description="validation metric, e.g. validation/flow; the checkpoint with its lowest value is kept as well",
    )
    max_failures: int = Field(default=3, ge=0, description="worker failures that the run tolerates before it stops")
    preemption_check_every: int = Field(
        default=10,
        ge=0,
        description="steps between checks for a preemption notice; on one, a checkpoint is saved at once. 0 disables "
        "the check",
    )


class GuardConfig(Frozen):
    """How a run handles non-finite or spiking losses and hangs. None of this changes a healthy step."""

    max_rewinds: int = Field(
        default=3,
        ge=0,
        description="how often a run rewinds to its last checkpoint after a non-finite loss or gradient, or a loss "
        "spike, before it stops; the samples of the micro-batches at fault are quarantined",
    )
    spike: float | None = Field(
        default=None,
        gt=1,
        description="a loss above this multiple of the median of the last `window` losses is a spike; if omitted, "
        "spikes are not detected",
    )
    hang_seconds: float = Field(
        default=600,
        gt=0,
        description="watchdog timeout, seconds: a worker that spends longer in one phase (data, compute, a collective, "
        "saving) reports its stack and exits, and the run restarts from its checkpoint",
    )
    window: int = Field(default=64, gt=1, description="number of preceding losses whose median defines a spike")
