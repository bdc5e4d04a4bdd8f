"""The interface of every decoder from features to pixels: one call, and the operations of that call for FLOP counts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of decoding: what to run, and how many calls one image takes."""

    name: str
    run: Callable[[], object]
    calls: int = 1


class Decoder(nn.Module, ABC):
    """Maps features [B, L, F], or coarse images [B, 3, S, S] if the config has a coarse head, to images."""

    @abstractmethod
    def forward(self, inputs: Tensor, noise: Tensor, null_LF: Tensor | None = None) -> Tensor:
        """Decodes `inputs` to images [B, 3, S, S], about −1 … 1.

        `noise` is [B, *config.noise_shape]; `null_LF` holds the features of the unconditional branch, if there is one.
        """

    @abstractmethod
    def operations(self, inputs: Tensor, noise: Tensor) -> Iterator[Operation]:
        """The operations of one decode, without those of the coarse head."""
