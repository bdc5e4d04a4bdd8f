"""What crosses between the HTTP face and the engine: requests, replies, and the errors that are neither's defect.

All of it pickles, so the two may live in different processes. No torch here: the HTTP face runs without it.
"""

from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from blip3o.config.resize import ResizeConfig
from blip3o.data.text.templates import Turn
from blip3o.errors import Blip3oError

MAX_IMAGES = 10  # of one request, as in OpenAI's API


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """One image for each seed, by Euler steps. A `guidance_scale` of 1 asks for the conditional branch only."""

    prompt: str
    seeds: tuple[int, ...]
    num_inference_steps: int
    guidance_scale: float

    def __post_init__(self) -> None:
        """Checks what no client can reach, as the HTTP face has checked it already."""
        assert 1 <= len(self.seeds) <= MAX_IMAGES, f"{len(self.seeds)} seeds"
        assert self.num_inference_steps >= 1, f"{self.num_inference_steps} steps"


@dataclass(frozen=True, kw_only=True)
class GenerateReply:
    """The RGB images in the order of the seeds, and the tokens that the prompt took."""

    images: tuple[Image.Image, ...]
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A conversation that waits for the assistant, about an image of any size if there is one."""

    turns: tuple[Turn, ...]
    image: Image.Image | None
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class ChatReply:
    """The assistant's text; `complete` is False where `max_tokens` cut it off."""

    text: str
    prompt_tokens: int
    reply_tokens: int
    complete: bool


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What the HTTP face has to know of the model.

    Sides in pixels of an image that it generates and of one that it looks at (0 if it sees none), how a picture comes
    to the latter, feature tokens of a generated image, and the sampler's defaults.
    """

    image_size: int
    vision_size: int
    vision_resize: ResizeConfig
    image_tokens: int
    num_inference_steps: int
    guidance_scale: float


class Backend(Protocol):
    """Whatever answers requests: an engine in this process, or a deployment behind a handle."""

    async def describe(self) -> ModelInfo:
        """What the model is."""
        ...

    async def generate(self, request: GenerateRequest) -> GenerateReply:
        """Raises `RequestError`, `BusyError`, `UnavailableError` or `EngineError`; cancelling it frees the work."""
        ...

    async def chat(self, request: ChatRequest) -> ChatReply:
        """Raises as `generate` does."""
        ...


class BusyError(Blip3oError):
    """The queue is full; `retry_after_s` is when to come again, seconds."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        """The message for the client."""
        return f"the server's queue is full: try again in {self.retry_after_s} s"


class UnavailableError(Blip3oError):
    """The model cannot answer now: it is starting, stopping, or was lost."""


class EngineError(RuntimeError):
    """A defect that failed one request; the log has its traceback."""
