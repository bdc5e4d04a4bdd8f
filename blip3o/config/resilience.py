"""What a run does about failures, as data: checkpoints, retries, guards, and workers that come and go."""

from typing import Self

from pydantic import Field, model_validator

from blip3o.config.base import Frozen, require


class WorkersConfig(Frozen):
    """A number of training workers that follows what the cluster has."""

    min: int = Field(gt=0, description="fewest workers that train; below it, the run waits")
    max: int = Field(gt=0, description="most workers that train")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        require(self.min <= self.max, f"parallel.workers: min {self.min} is above max {self.max}: swap them")
        return self


class CheckpointConfig(Frozen):
    """When to save, what to keep, and how often to try again."""

    every: int = Field(gt=0, description="optimizer steps between checkpoints")
    keep: int = Field(default=2, gt=0, description="newest checkpoints kept")
    keep_every: int | None = Field(
        default=None, gt=0, description="checkpoints at multiples of this many steps are kept permanently"
    )
    best: str | None = Field(
        default=None,
        description="figure of the validations, as validation/flow; the checkpoint where it is lowest is kept as well",
    )
    max_failures: int = Field(default=3, ge=0, description="worker failures after which the run gives up")
    preemption_check_every: int = Field(
        default=10,
        ge=0,
        description="steps between two looks for the notice that a node is about to be taken, at which a checkpoint is "
        "saved at once; 0 never looks",
    )


class GuardConfig(Frozen):
    """What a run does about steps that go wrong by themselves. None of this changes a step that goes well."""

    max_rewinds: int = Field(
        default=3,
        ge=0,
        description="times that a run goes back to its last checkpoint because a loss or gradient is not finite, or "
        "because the loss spikes; the samples of the micro-batches behind it are put in quarantine. Then it gives up",
    )
    spike: float | None = Field(
        default=None,
        gt=1,
        description="a loss above this multiple of the median of the last `window` losses is a spike; no loss is if "
        "left out",
    )
    hang_seconds: float = Field(
        default=1800,
        gt=0,
        description="seconds that a worker may be at one thing (data, arithmetic, a sum over workers, saving) before "
        "it reports where it hangs, and is ended so that the run starts again from its checkpoint",
    )
    window: int = Field(default=64, gt=1, description="steps before a loss that a spike is judged by")
