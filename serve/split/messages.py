"""What the coordinator and the stages exchange. Everything can be pickled; tensors are numpy arrays: no torch here."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from serve.protocol import Backend, GenerateRequest, ReplicaMetrics

Array = np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditioned:
    """Query states, fp32 [N, H], of a request's prompt and, if it has an effect, of its negative prompt.

    fp32 has every value of bf16, so nothing is rounded on the way. `prompt_tokens` are those of the prompt.
    """

    states: tuple[Array, ...]
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True, eq=False)
class DenoiseRequest:
    """A request for images whose prompts were read."""

    request: GenerateRequest
    states: tuple[Array, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class DenoisedRow:
    """The features, fp32 [L, F], of image number `image` of a request; of its preview `partial`, if that is given."""

    image: int
    features: Array
    partial: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodeRequest:
    """Features, fp32 [L, F], to be made pixels from the noise of `seed`, within `deadline_s` seconds."""

    features: Array
    seed: int
    is_partial: bool = False
    deadline_s: float | None = None


class Stages(Protocol):
    """The stages, wherever they run. Cancelling a call, or closing a stream, frees its rows in the stage.

    Calls raise what those of `Backend` do.
    """

    @property
    def chat(self) -> Backend:
        """The stage that answers conversations."""
        ...

    async def check(self) -> None:
        """Returns if every stage can answer. Does not wait behind requests."""
        ...

    async def metrics(self) -> ReplicaMetrics:
        """Those of all stages. Requests for images are not in them: whoever joins the stages counts those."""
        ...

    async def condition(self, request: GenerateRequest) -> Conditioned:
        """Reads a request's prompts."""
        ...

    def denoise(self, request: DenoiseRequest) -> AsyncGenerator[DenoisedRow, None]:
        """Denoises a request's images; yields previews, and each image's row as soon as it is done."""
        ...

    async def decode(self, request: DecodeRequest) -> Image.Image | None:
        """Makes the pixels of one row; None for a preview for which the decoder has no room."""
        ...
