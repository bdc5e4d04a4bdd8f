"""What clients may send: OpenAI's fields that this server honours, and its own extensions of the images route.

A field that would change the answer and is not honoured is refused, never swallowed: unknown fields are errors, and so
are unsupported values of known ones. `null` means "not given", as in OpenAI's clients.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from blip3o.data.templates import Turn
from serve.messages import MAX_IMAGES

MAX_PROMPT = 32_000  # characters, as in OpenAI's API; the model's own limit in tokens is far lower
MAX_SEED = 2**53 - 1 - MAX_IMAGES  # what every JSON client can carry
MAX_STEPS = 250
MAX_TOKENS = 512
DEFAULT_TOKENS = 64


class Body(BaseModel):
    """Base of every request body."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:  # noqa: ANN401 - whatever JSON the client sent
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class ImagesBody(Body):
    """Body of `POST /v1/images/generations`."""

    prompt: str = Field(max_length=MAX_PROMPT, description="what to draw")
    model: str | None = Field(default=None, description="the served model's name, if given")
    n: int = Field(default=1, ge=1, le=MAX_IMAGES, description="images; the i-th one is drawn from seed + i")
    size: str = Field(default="auto", description="'auto', or the model's own size as WxH")
    quality: Literal["auto", "standard"] = Field(default="auto", description="see num_inference_steps")
    background: Literal["auto", "opaque"] = Field(default="auto", description="images have no transparency")
    output_format: Literal["png", "jpeg", "webp"] = Field(default="png", description="file format of the images")
    output_compression: int = Field(default=100, ge=0, le=100, description="quality of jpeg and webp, percent")
    response_format: str = Field(default="b64_json", description="only b64_json")
    stream: bool = Field(default=False, description="only false")
    partial_images: int = Field(default=0, description="only 0")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="random if not given; the reply names it")
    num_inference_steps: int | None = Field(default=None, ge=1, le=MAX_STEPS, description="DiT evaluations per branch")
    guidance_scale: float | None = Field(
        default=None, ge=0, le=100, allow_inf_nan=False, description="1: no guidance, and half the work"
    )
    user: str | None = Field(default=None, description="accepted, not used")
    safety_identifier: str | None = Field(default=None, description="accepted, not used")

    @field_validator("response_format")
    @classmethod
    def _no_url(cls, value: str) -> str:
        if value != "b64_json":
            raise ValueError(f"response_format '{value}' is not offered, as this server stores no images: use b64_json")
        return value

    @field_validator("stream", "partial_images")
    @classmethod
    def _no_stream(cls, value: int) -> int:
        if value:
            raise ValueError("images are not streamed here: leave stream and partial_images out")
        return value


class TextPart(Body):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str = Field(max_length=MAX_PROMPT)


class ImageUrl(Body):
    """Where an image is."""

    url: str = Field(description="data:image/...;base64,...")
    detail: Literal["auto", "low", "high"] = Field(default="auto", description="accepted; the model has one resolution")


class ImagePart(Body):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(Body):
    """One turn of a conversation; plain text counts as one text part."""

    role: Literal["system", "developer", "user", "assistant"]
    content: tuple[Annotated[TextPart | ImagePart, Field(discriminator="type")], ...]

    @field_validator("content", mode="before")
    @classmethod
    def _text_is_a_part(cls, value: Any) -> Any:  # noqa: ANN401 - whatever JSON the client sent
        return [{"type": "text", "text": value}] if isinstance(value, str) else value

    @property
    def turn(self) -> Turn:
        """The text of the message."""
        role = "system" if self.role == "developer" else self.role
        return Turn(role=role, text="\n".join(part.text for part in self.content if isinstance(part, TextPart)))

    @property
    def images(self) -> list[str]:
        """The URLs of its images."""
        return [part.image_url.url for part in self.content if isinstance(part, ImagePart)]


class StreamOptions(Body):
    """Options of a streamed reply."""

    include_usage: bool = Field(default=False, description="send the token counts as a last chunk")
    include_obfuscation: bool = Field(default=False, description="accepted, not used")


class ChatBody(Body):
    """Body of `POST /v1/chat/completions`. Replies are greedy: the same conversation always gets the same one."""

    messages: tuple[Message, ...] = Field(min_length=1, description="the conversation; its last message is the user's")
    model: str | None = Field(default=None, description="the served model's name, if given")
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS, description="most tokens of the reply")
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS, description="newer name of max_tokens")
    n: Literal[1] = Field(default=1, description="a greedy reply has no variants")
    temperature: float = Field(default=0, ge=0, le=2, description="accepted; decoding is greedy whatever it says")
    top_p: float = Field(default=1, ge=0, le=1, description="accepted; decoding is greedy whatever it says")
    seed: int | None = Field(default=None, description="accepted; a greedy reply needs none")
    modalities: tuple[Literal["text"]] = Field(default=("text",), description="images: /v1/images/generations")
    stream: bool = Field(default=False, description="send the reply as server-sent events (in one piece)")
    stream_options: StreamOptions = Field(default=StreamOptions())
    user: str | None = Field(default=None, description="accepted, not used")
    safety_identifier: str | None = Field(default=None, description="accepted, not used")

    @property
    def token_limit(self) -> int:
        """Most tokens of the reply."""
        return self.max_completion_tokens or self.max_tokens or DEFAULT_TOKENS

    @property
    def image_url(self) -> str | None:
        """The URL of the conversation's image."""
        return next((url for message in self.messages for url in message.images), None)

    @model_validator(mode="after")
    def _answerable(self) -> Self:
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's: it is what gets answered")
        first_user = next(message for message in self.messages if message.role == "user")
        holders = [message for message in self.messages for _ in message.images]
        if len(holders) > 1:
            raise ValueError(f"the conversation has {len(holders)} images, this model reads one")
        if holders and holders[0] is not first_user:
            raise ValueError("the image must be in the first message of the user: that is where the model looks for it")
        return self
