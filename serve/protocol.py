"""What the HTTP API and the engine exchange: requests, replies, and expected errors.

Everything can be pickled, so both may run in different processes. Imports no torch: the HTTP API runs without it.
"""

from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from blip3o.config.resize import ResizeConfig
from blip3o.data.text.templates import Turn
from blip3o.errors import Blip3oError
from blip3o.inference.precision import ResolvedPrecision

MAX_IMAGES = 10  # of one request, as in OpenAI's API


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """A request for one image per seed. A `guidance_scale` of 1 means no guidance."""

    prompt: str
    seeds: tuple[int, ...]
    num_inference_steps: int
    guidance_scale: float

    def __post_init__(self) -> None:
        """Asserts what the HTTP API has already validated."""
        assert 1 <= len(self.seeds) <= MAX_IMAGES, f"{len(self.seeds)} seeds"
        assert self.num_inference_steps >= 1, f"{self.num_inference_steps} steps"


@dataclass(frozen=True, kw_only=True)
class GenerateReply:
    """The RGB images in the order of the seeds, and the number of tokens in the prompt."""

    images: tuple[Image.Image, ...]
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A conversation to reply to, and its image, of any size, if there is one."""

    turns: tuple[Turn, ...]
    image: Image.Image | None
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class ChatReply:
    """The assistant's text, and token counts; `complete` is False if `max_tokens` truncated it."""

    text: str
    prompt_tokens: int
    reply_tokens: int
    complete: bool


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The model's properties that the HTTP API needs.

    `image_size`: side of generated images, pixels. `vision_size`: side of images in conversations, pixels (0 for a
    text-only model), to which `vision_resize` brings them. `image_tokens`: feature tokens of a generated image.
    `precision`: that of weights and arithmetic. The others are the sampler's defaults.
    """

    image_size: int
    vision_size: int
    vision_resize: ResizeConfig
    image_tokens: int
    num_inference_steps: int
    guidance_scale: float
    precision: ResolvedPrecision


class Backend(Protocol):
    """Whatever answers requests: an engine in this process, or a deployment behind a handle."""

    async def describe(self) -> ModelInfo:
        """The model's properties. Raises `UnavailableError`."""
        ...

    async def generate(self, request: GenerateRequest) -> GenerateReply:
        """Generates images; cancellation frees their rows.

        Raises `RequestError`, `BusyError`, `UnavailableError` or `EngineError`.
        """
        ...

    async def chat(self, request: ChatRequest) -> ChatReply:
        """Answers a conversation. Raises as `generate` does."""
        ...


class BusyError(Blip3oError):
    """The queue is full; retry after `retry_after_s` seconds."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        """The message for the client."""
        return f"the server's queue is full: try again in {self.retry_after_s} s"


class UnavailableError(Blip3oError):
    """The model is not available: it is starting, stopping, or was lost."""


class EngineError(RuntimeError):
    """A request failed because of a bug; the log has the traceback."""
