"""What a denoiser keeps of a condition, whatever its kind: a batch of rows that a server may fill one by one."""

from abc import ABC, abstractmethod

from torch import Tensor


class Condition(ABC):
    """Query states made ready for every step of a flow. Kinds differ only in their tensors."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it, each with the batch in front."""

    def put(self, row: int, source: "Condition", source_row: int) -> None:
        """Overwrites one row, in place, with a row of another batch of the same kind."""
        for mine, theirs in zip(self.tensors, source.tensors, strict=True):
            mine[row] = theirs[source_row]
