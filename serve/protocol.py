"""What the HTTP API and the engine exchange: requests, replies, and expected errors.

Everything can be pickled, so both may run in different processes. Imports no torch: the HTTP API runs without it.
"""

import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from PIL import Image

from blip3o.config.resize import ResizeConfig
from blip3o.config.sampler import Solver
from blip3o.data.text.templates import Turn
from blip3o.errors import Blip3oError
from blip3o.inference.precision import ResolvedPrecision
from serve.metrics import EngineMetrics

Ability = Literal["generate", "chat", "edit", "variation"]
FinishReason = Literal["stop", "length"]

MAX_IMAGES = 10  # of one request, as in OpenAI's API
MAX_PARTIAL_IMAGES = 3  # of one image, as in OpenAI's API
_RETRY_AFTER_S = (1, 60)  # bounds of the `retry-after` of a rejected request


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """A request for one image per seed.

    A `guidance_scale` of 1 means no guidance, and a `negative_prompt` then has no effect; "" is the null condition of
    training. `partial_images` is how many previews each image has. `owner` is the name of the API key, for fairness.
    A higher `priority` goes first. `deadline_s` is the longest time from arrival to reply, seconds.
    """

    prompt: str
    seeds: tuple[int, ...]
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str = ""
    partial_images: int = 0
    owner: str = ""
    priority: int = 0
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        """Asserts what the HTTP API has already validated."""
        assert 1 <= len(self.seeds) <= MAX_IMAGES, f"{len(self.seeds)} seeds"
        assert self.num_inference_steps >= 1, f"{self.num_inference_steps} steps"
        assert 0 <= self.partial_images <= MAX_PARTIAL_IMAGES, f"{self.partial_images} partial images"


@dataclass(frozen=True, kw_only=True)
class PartialImage:
    """Preview number `partial`, from 0, of image number `number` of the request: the data that the model expects."""

    image: Image.Image
    number: int
    partial: int


@dataclass(frozen=True, kw_only=True)
class FinishedImage:
    """Image number `number` of the request, as soon as it is done."""

    image: Image.Image
    number: int


@dataclass(frozen=True, kw_only=True)
class GenerateReply:
    """The RGB images in the order of the seeds, and the number of tokens in the prompt."""

    images: tuple[Image.Image, ...]
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A conversation to reply to, and its images, of any size.

    `temperature` 0 is greedy; above, tokens are drawn from the most likely ones that hold `top_p` of the probability,
    and the same `seed` gives the same reply; None is another one each time. The reply ends before the first of the
    texts in `stop`. `owner`, `priority` and `deadline_s` are as in `GenerateRequest`.
    """

    turns: tuple[Turn, ...]
    images: tuple[Image.Image, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    owner: str = ""
    priority: int = 0
    deadline_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class ChatDelta:
    """The next piece of a reply's text."""

    text: str


@dataclass(frozen=True, kw_only=True)
class ChatReply:
    """The assistant's text, and token counts. `finish_reason` is "length" if `max_tokens` truncated it."""

    text: str
    prompt_tokens: int
    reply_tokens: int
    finish_reason: FinishReason


ImageEvent = PartialImage | FinishedImage | GenerateReply
ChatEvent = ChatDelta | ChatReply


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The model's properties that the HTTP API needs.

    `image_size`: side of generated images, pixels. `vision_size`: side of images in conversations, pixels (0 for a
    text-only model), to which `vision_resize` brings them. `image_tokens`: feature tokens of a generated image.
    `precision`: that of weights and arithmetic. `num_inference_steps`, `guidance_scale`, `solver`: the sampler's
    defaults. `bundle_sha256`: hash of all that was loaded. `prompt_tokens_limit`: most tokens of a prompt or
    conversation, with those of the template.
    """

    image_size: int
    vision_size: int
    vision_resize: ResizeConfig
    image_tokens: int
    num_inference_steps: int
    guidance_scale: float
    precision: ResolvedPrecision
    bundle_sha256: str
    solver: Solver
    abilities: frozenset[Ability]
    max_images_in_chat: int
    prompt_tokens_limit: int


@dataclass(frozen=True, kw_only=True)
class ReplicaMetrics:
    """Metrics by the name of the replica, which no other one ever gets. `silent` replicas did not answer in time."""

    replicas: Mapping[str, EngineMetrics]
    silent: int = 0

    def __add__(self, other: "ReplicaMetrics") -> "ReplicaMetrics":
        """Those of both."""
        return ReplicaMetrics(replicas={**self.replicas, **other.replicas}, silent=self.silent + other.silent)


class Backend(Protocol):
    """Whatever answers requests: an engine in this process, or a deployment behind a handle.

    Each method raises `UnavailableError`; those that take a request also raise `RequestError`, `BusyError`,
    `DeadlineError` or `EngineError`. Cancelling a call, or closing a stream, frees the request's rows.
    """

    async def check(self) -> None:
        """Returns if requests can be answered. Does not wait behind them."""
        ...

    async def describe(self) -> ModelInfo:
        """The model's properties, which never change."""
        ...

    async def generate(self, request: GenerateRequest) -> GenerateReply:
        """Generates images."""
        ...

    def stream_images(self, request: GenerateRequest) -> AsyncIterator[ImageEvent]:
        """Generates images; yields previews, each image as soon as it is done, and at last the reply."""
        ...

    async def chat(self, request: ChatRequest) -> ChatReply:
        """Answers a conversation."""
        ...

    def stream_chat(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """Answers a conversation; yields the text piece by piece, and at last the reply."""
        ...

    async def metrics(self) -> ReplicaMetrics:
        """What each replica has counted since its start, and its current load. Does not wait behind requests."""
        ...


class BusyError(Blip3oError):
    """The queue is full; retry after `retry_after_s` seconds."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        """The message for the client."""
        return f"the server's queue is full: try again in {self.retry_after_s} s"


def busy(seconds: float) -> BusyError:
    """The error of a full queue that takes about `seconds`."""
    least, most = _RETRY_AFTER_S
    return BusyError(min(max(math.ceil(seconds), least), most))


class DeadlineError(Blip3oError):
    """The request was not done within its `deadline_s`."""

    def __init__(self, deadline_s: float) -> None:
        super().__init__(deadline_s)
        self.deadline_s = deadline_s

    def __str__(self) -> str:
        """The message for the client."""
        return f"the request was not done within its {self.deadline_s:g} s: try again, or allow more"


class UnavailableError(Blip3oError):
    """The model is not available: it is starting, stopping, or was lost."""


class EngineError(RuntimeError):
    """A request failed because of a bug; the log has the traceback."""
