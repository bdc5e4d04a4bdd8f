"""The interface of every decoder from features to pixels: the steps of a decode, and its operations for FLOP counts.

A decode is a trajectory of evaluations. A caller may take all of them (`forward`), or share each evaluation between
images that are at different steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from blip3o.model.flow import Trajectory

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of decoding: what to run, and how many calls one image takes."""

    name: str
    run: Callable[[], object]
    calls: int = 1


class Decoder(nn.Module, ABC):
    """Maps features [B, L, F], or coarse images [B, 3, S, S] if the config has a coarse head, to images."""

    previews = False
    """Whether a decode of one step gives an image that resembles the result."""

    @abstractmethod
    def prepare(self, inputs: Tensor, null_LF: Tensor | None) -> Tensors:
        """What all steps read; each tensor has the batch as first dimension.

        `null_LF` holds the features of the unconditional branch, if there is one.
        """

    @abstractmethod
    def start(self, noise: Tensor, steps: int | None = None) -> Trajectory:
        """The trajectory from `noise`, of one image (`config.noise_shape`) or a batch; by default the config's steps.

        It is done at once if the decoder takes no steps.
        """

    @abstractmethod
    def evaluate(self, point: Tensor, level_B: Tensor, prepared: Tensors) -> Tensor:
        """One evaluation at points of trajectories [B, …] and their levels [B]: what `Trajectory.advance` takes."""

    @abstractmethod
    def images(self, reached: Tensor, prepared: Tensors) -> Tensor:
        """The ends of trajectories [B, …] → images [B, 3, S, S], about −1 … 1."""

    def forward(self, inputs: Tensor, noise: Tensor, null_LF: Tensor | None = None) -> Tensor:
        """Decodes `inputs` and noise [B, *config.noise_shape] to images [B, 3, S, S], about −1 … 1."""
        prepared, way = self.prepare(inputs, null_LF), self.start(noise)
        while not way.done:
            way.advance(self.evaluate(way.point, way.level.expand(noise.shape[0]), prepared))
        return self.images(way.point, prepared)

    @abstractmethod
    def operations(self, inputs: Tensor, noise: Tensor) -> Iterator[Operation]:
        """The operations of one decode, without those of the coarse head."""
