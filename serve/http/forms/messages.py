"""Messages and their parts, in the two shapes that OpenAI's API has: of chat completions, and of responses."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, PlainValidator, TypeAdapter, field_validator, model_validator

from serve.http.forms import fields
from serve.http.forms.base import Body, Listed

Detail = Literal["auto", "low", "high", "original"]
Role = Literal["system", "developer", "user", "assistant"]
_ONE_RESOLUTION = "no effect: the model has one resolution"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The URL of an image in a conversation, and its path in the request."""

    path: str
    url: str


class TextPart(Body):
    """A piece of text in a message."""

    neutral = fields.PART

    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalPart(Body):
    """A refusal by another model; treated as text."""

    neutral = fields.PART

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """The text of the refusal."""
        return self.refusal


class ImageUrl(Body):
    """The URL of an image."""

    neutral = fields.IMAGE_URL

    url: str = Field(description="data:image/...;base64,...")
    detail: Detail = Field(default="auto", description=_ONE_RESOLUTION)


class ImagePart(Body):
    """An image in a message of a chat completion."""

    neutral = fields.PART
    path: ClassVar[str] = "image_url.url"

    type: Literal["image_url"]
    image_url: ImageUrl

    @property
    def url(self) -> str:
        """The URL of the image."""
        return self.image_url.url

    @field_validator("image_url", mode="before")
    @classmethod
    def _is_an_object(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError('image_url must be an object with url: {"url": "data:image/..."}, not a string')
        return value


class InputImage(Body):
    """An image in a message of a response's input."""

    neutral = fields.INPUT_IMAGE
    path: ClassVar[str] = "image_url"

    type: Literal["input_image"]
    image_url: str = Field(description="data:image/...;base64,...")
    detail: Detail = Field(default="auto", description=_ONE_RESOLUTION)

    @property
    def url(self) -> str:
        """The URL of the image."""
        return self.image_url


Part = TextPart | RefusalPart | ImagePart | InputImage
_Parts = Mapping[str, type[Part]]


# The type of a part. Parts are not a tagged union, since pydantic would put its tags into error paths.
class _ChatPartType(BaseModel):
    type: Literal["text", "image_url", "refusal"]


class _InputPartType(BaseModel):
    type: Literal["input_text", "input_image", "output_text", "refusal", "text"]


_OF_CHAT: _Parts = {"text": TextPart, "image_url": ImagePart, "refusal": RefusalPart}
_OF_INPUT: _Parts = {
    "input_text": TextPart,
    "output_text": TextPart,
    "text": TextPart,
    "input_image": InputImage,
    "refusal": RefusalPart,
}


def _read_chat_part(value: object) -> Part:
    return _OF_CHAT[_ChatPartType.model_validate(value).type].model_validate(value)


def _read_input_part(value: object) -> Part:
    return _OF_INPUT[_InputPartType.model_validate(value).type].model_validate(value)


Parts = tuple[Part, ...]
_CHAT_PARTS: TypeAdapter[Parts] = TypeAdapter(Listed[Annotated[Part, PlainValidator(_read_chat_part)]])
_INPUT_PARTS: TypeAdapter[Parts] = TypeAdapter(Listed[Annotated[Part, PlainValidator(_read_input_part)]])


class Message(Body):
    """One message of a conversation. A string counts as one text part; an assistant's null content as empty."""

    neutral = fields.MESSAGE
    parts: ClassVar[TypeAdapter[Parts]] = _CHAT_PARTS

    role: Role
    content: Parts
    refusal: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_no_text(cls, data: Any) -> Any:  # noqa: ANN401 - whatever JSON the client sent
        if isinstance(data, dict) and data.get("role") == "assistant" and data.get("content") is None:
            return {**data, "content": ""}
        return data

    @field_validator("role", mode="before")
    @classmethod
    def _no_tools(cls, value: object) -> object:
        if value in ("tool", "function"):
            raise ValueError(f"role '{value}' is the reply of a tool, and this model calls none: leave the message out")
        return value

    @field_validator("content", mode="plain", json_schema_input_type=str | list[dict[str, Any]])
    @classmethod
    def _read_content(cls, value: object) -> Parts:
        if isinstance(value, str):
            return (TextPart(type="text", text=value),)
        if not isinstance(value, list):
            raise ValueError("content must be a string or a list of parts")
        return cls.parts.validate_python(tuple(value))

    @property
    def text(self) -> str:
        """The text of the message, one line per text part."""
        texts = [part.text for part in self.content if isinstance(part, TextPart | RefusalPart)]
        return "\n".join(texts) or self.refusal or ""

    @property
    def image_indices(self) -> tuple[int, ...]:
        """Indices of its parts that are images."""
        return tuple(place for place, part in enumerate(self.content) if isinstance(part, ImagePart | InputImage))


class InputMessage(Message):
    """One message of a response's input."""

    neutral = fields.ITEM
    parts = _INPUT_PARTS

    type: Literal["message"] = Field(default="message", description="the kind of the item")


def pictures(messages: Iterable[tuple[str, Message]]) -> tuple[Picture, ...]:
    """The images of messages, each of which comes with its path in the request."""
    return tuple(
        Picture(path=f"{place}.content.{number}.{part.path}", url=part.url)
        for place, message in messages
        for number, part in enumerate(message.content)
        if isinstance(part, ImagePart | InputImage)
    )
