"""What every decoder from features to pixels is to those who use it: one call, and the work of that call in parts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A part of a decode: what it runs, and how often for one image."""

    name: str
    run: Callable[[], object]
    calls: int = 1


class Decoder(nn.Module, ABC):
    """Features [B, L, F], or the coarse image [B, 3, S, S] where the config has a coarse head, to images."""

    @abstractmethod
    def forward(self, inputs: Tensor, noise: Tensor, null_LF: Tensor | None = None) -> Tensor:
        """Images [B, 3, S, S] around −1 … 1.

        `noise` is [B, *config.noise_shape]; `null_LF` are the features of the unconditional branch, if there is one.
        """

    @abstractmethod
    def operations(self, inputs: Tensor, noise: Tensor) -> Iterator[Operation]:
        """The parts of one decode, without those of the coarse head."""
