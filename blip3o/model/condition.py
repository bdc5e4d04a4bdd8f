"""The interface of the parts that predict a velocity: the prepared condition, and the denoiser."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Generic, Self, TypeVar

from torch import Tensor, nn


class Condition(ABC):
    """Query states, prepared once for all steps of a flow: a batch of rows. Subclasses differ only in their tensors."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """All of its tensors, each with the batch as first dimension."""

    @abstractmethod
    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """A condition of the same kind that holds these tensors, in the order of `tensors`."""


ConditionT = TypeVar("ConditionT", bound=Condition)


class Denoiser(nn.Module, ABC, Generic[ConditionT]):
    """Predicts the velocity: call `condition(states)` once, then `(latents, time_B, condition)` at each step."""

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """Its transformer blocks, for activation checkpointing; none by default."""
        return ()

    @abstractmethod
    def condition(self, states_BNH: Tensor) -> ConditionT:
        """Prepares query states [B, N, H] for any number of steps. Zeros give the null condition."""

    @abstractmethod
    def forward(self, latents_BLF: Tensor, time_B: Tensor, condition: ConditionT) -> Tensor:
        """The velocity [B, L, F] at latents [B, L, F] and times [B] in 0 … 1000 (1000 σ)."""
