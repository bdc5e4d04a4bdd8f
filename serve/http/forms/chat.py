"""The body of `POST /v1/chat/completions`."""

from collections.abc import Collection, Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from blip3o.data.text.templates import Turn
from blip3o.inference import messages
from serve.http.forms import fields
from serve.http.forms.base import Body, Listed, Whole
from serve.http.forms.conversations import DEFAULT_TOKENS, MAX_STOPS, MAX_TOKENS, Drawing, Stops, check_conversation
from serve.http.forms.images import Sampling
from serve.http.forms.messages import Message, Picture, pictures


class StreamOptions(Body):
    """Options of a streamed reply."""

    neutral = fields.STREAM_OPTIONS

    include_usage: bool = Field(default=False, description="send the token counts as a last chunk")


class ChatBody(Drawing, Sampling):
    """Body of `POST /v1/chat/completions`. Fields of sampling have an effect if `modalities` has "image"."""

    neutral = fields.CHAT

    messages: Listed[Message] = Field(min_length=1, strict=False, description="the conversation")
    model: str | None = Field(default=None, description="the served model's name, if given")
    max_tokens: Whole | None = Field(
        default=None,
        ge=1,
        description="former name of max_completion_tokens, which takes precedence",
        json_schema_extra={"mapped_to": "max_completion_tokens"},
    )
    max_completion_tokens: Whole | None = Field(
        default=None, ge=1, description=f"most tokens in the reply, capped at {MAX_TOKENS}; {DEFAULT_TOKENS} if omitted"
    )
    n: Whole = Field(default=1, description="only 1")
    stop: Stops = Field(default=(), max_length=MAX_STOPS, description="the reply ends before the first of these texts")
    modalities: Listed[Literal["text", "image"]] = Field(
        default=("text",),
        min_length=1,
        strict=False,
        description='with "image", message.images has an image of the last message',
    )
    stream: bool = Field(default=False, description="send the reply token by token, as server-sent events")
    stream_options: StreamOptions = Field(default=StreamOptions(), description="options of a streamed reply")

    @classmethod
    def _idle(cls, data: Mapping[str, Any]) -> Collection[str]:
        return () if data.get("temperature") else fields.DRAWING

    @property
    def token_limit(self) -> int:
        """Most tokens of the reply."""
        return min(self.max_completion_tokens or self.max_tokens or DEFAULT_TOKENS, MAX_TOKENS)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation as turns of the template."""
        return messages.to_turns(self.messages)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The images of the conversation."""
        return pictures((f"messages.{place}", message) for place, message in enumerate(self.messages))

    @property
    def image_prompt(self) -> str | None:
        """The prompt of the image that the reply has; None if it has none."""
        if "image" not in self.modalities:
            return None
        return next(message.text for message in reversed(self.messages) if message.role == "user")

    @field_validator("n")
    @classmethod
    def _one_reply(cls, value: int) -> int:
        if value != 1:
            raise ValueError(f"{fields.quoted(value)} is not offered: send one request for each reply")
        return value

    @model_validator(mode="after")
    def _answerable(self) -> Self:
        check_conversation(self.messages, "messages")
        return self
