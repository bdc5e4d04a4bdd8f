"""The request bodies: OpenAI's fields that this server supports, and its own extensions of the images route.

A field that would change the answer but is not supported is rejected, never ignored: unknown fields are errors, and so
are unsupported values of known ones. Fields without effect are listed in `serve.fields` and accepted. `null` means
"not given", as in OpenAI's clients. Types are JSON's, without coercion; 16.0 is a whole number.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from blip3o.data.text.templates import Turn
from blip3o.inference import messages
from blip3o.inference.arguments import MAX_GUIDANCE
from serve import fields
from serve.protocol import MAX_IMAGES

MAX_PROMPT = 32_000  # characters, as in OpenAI's API; the model's own limit in tokens is far lower
MAX_SEED = 2**53 - 1 - MAX_IMAGES  # every JSON client can represent the seeds up to seed + n
MAX_STEPS = 250
MAX_TOKENS = 512
DEFAULT_TOKENS = 64
UNKNOWN = "unknown_parameter"

Json = dict[str, Any]


def fault(place: tuple[str | int, ...], value: object, message: str, *, kind: str = "value_error") -> ValidationError:
    """An error at a path below the form that is being parsed; pydantic prepends that form's own path."""
    # The message may quote the client, and pydantic would read braces in it as a template.
    error = PydanticCustomError(kind, "{message}", {"message": message})
    return ValidationError.from_exception_data("body", [InitErrorDetails(type=error, loc=place, input=value)])


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


class Body(BaseModel):
    """Base of every request body."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    neutral: ClassVar[fields.Fields] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral_fields(cls, data: Any) -> Any:  # noqa: ANN401 - whatever JSON the client sent
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if cls._is_effective(name, value)}

    @classmethod
    def _is_effective(cls, name: str, value: object) -> bool:
        """Whether a field has an effect. Raises `ValidationError` for an unsupported value."""
        rule = cls.neutral.get(name)
        if value is None or isinstance(rule, fields.Ignored):
            return False
        if rule is not None and not rule.allows(value):
            shown = fields.quoted(value)
            message = f"{shown} would change the answer and is not honoured here: send {rule}, or nothing"
            raise fault((name,), value, message, kind=UNKNOWN)
        return rule is None


class ImagesBody(Body):
    """Body of `POST /v1/images/generations`."""

    neutral = fields.IMAGES

    prompt: str = Field(max_length=MAX_PROMPT, description="description of the image")
    model: str | None = Field(default=None, description="the served model's name, if given")
    n: Whole = Field(default=1, ge=1, le=MAX_IMAGES, description="number of images; image i has the seed `seed` + i")
    size: str = Field(default="auto", description="'auto', or the model's own size as WxH")
    quality: Literal["auto", "standard"] = Field(default="auto", description="no effect; see num_inference_steps")
    background: Literal["auto", "opaque"] = Field(default="auto", description="images have no transparency")
    output_format: Literal["png", "jpeg", "webp"] = Field(default="png", description="file format of the images")
    output_compression: Whole = Field(default=100, ge=0, le=100, description="quality of jpeg and webp, percent")
    response_format: str = Field(default="b64_json", description="only b64_json")
    stream: bool = Field(default=False, description="only false")
    partial_images: Whole = Field(default=0, description="only 0")
    seed: Whole | None = Field(default=None, ge=0, le=MAX_SEED, description="random if not given; the reply has it")
    num_inference_steps: Whole | None = Field(
        default=None, ge=1, le=MAX_STEPS, description="sampling steps; the model's default if not given"
    )
    guidance_scale: float | None = Field(
        default=None, ge=0, le=MAX_GUIDANCE, description="1: no guidance, half the cost"
    )

    @field_validator("response_format")
    @classmethod
    def _no_url(cls, value: str) -> str:
        if value != "b64_json":
            raise ValueError(
                f"response_format {fields.quoted(value)} is not offered, as this server stores no images: use b64_json"
            )
        return value

    @field_validator("stream", "partial_images")
    @classmethod
    def _no_stream(cls, value: int) -> int:
        if value:
            raise ValueError("images are not streamed here: leave stream and partial_images out")
        return value


class TextPart(Body):
    """A piece of text in a message."""

    neutral = fields.PART

    type: Literal["text"]
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
    detail: Literal["auto", "low", "high", "original"] = Field(
        default="auto", description="the model has one resolution"
    )


class ImagePart(Body):
    """An image in a message."""

    neutral = fields.PART

    type: Literal["image_url"]
    image_url: ImageUrl

    @field_validator("image_url", mode="before")
    @classmethod
    def _is_an_object(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError('image_url must be an object with url: {"url": "data:image/..."}, not a string')
        return value


Part = TextPart | RefusalPart | ImagePart


class _PartType(BaseModel):
    """The type of a part. Parts are not a tagged union, since pydantic would put its tags into error paths."""

    type: Literal["text", "image_url", "refusal"]


_PARTS: dict[str, type[Part]] = {"text": TextPart, "refusal": RefusalPart, "image_url": ImagePart}


def _read_part(value: object) -> Part:
    return _PARTS[_PartType.model_validate(value).type].model_validate(value)


Parts = tuple[Annotated[Part, PlainValidator(_read_part)], ...]
_PARTS_OF_A_LIST: TypeAdapter[Parts] = TypeAdapter(Parts)


class Message(Body):
    """One message of a conversation. A string counts as one text part; an assistant's null content as empty."""

    neutral = fields.MESSAGE

    role: Literal["system", "developer", "user", "assistant"]
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

    @field_validator("content", mode="plain")
    @classmethod
    def _read_content(cls, value: object) -> Parts:
        if isinstance(value, str):
            return (TextPart(type="text", text=value),)
        if not isinstance(value, list):
            raise ValueError("content must be a string or a list of parts")
        return _PARTS_OF_A_LIST.validate_python(tuple(value))

    @property
    def text(self) -> str:
        """The text of the message, one line per text part."""
        return "\n".join(part.text for part in self.content if not isinstance(part, ImagePart)) or self.refusal or ""

    @property
    def image_indices(self) -> tuple[int, ...]:
        """Indices of its parts that are images."""
        return tuple(place for place, part in enumerate(self.content) if isinstance(part, ImagePart))


class StreamOptions(Body):
    """Options of a streamed reply."""

    neutral = fields.STREAM_OPTIONS

    include_usage: bool = Field(default=False, description="send the token counts as a last chunk")


class ChatBody(Body):
    """Body of `POST /v1/chat/completions`. Replies are greedy: the same conversation always gets the same one."""

    neutral = fields.CHAT

    messages: tuple[Message, ...] = Field(min_length=1, strict=False, description="the conversation")
    model: str | None = Field(default=None, description="the served model's name, if given")
    max_tokens: Whole | None = Field(default=None, ge=1, description=f"most tokens of the reply, {MAX_TOKENS} at most")
    max_completion_tokens: Whole | None = Field(default=None, ge=1, description="newer name of max_tokens")
    n: Whole = Field(default=1, description="only 1: a greedy reply has no variants")
    temperature: float = Field(default=0, ge=0, le=2, description="no effect: decoding is greedy")
    top_p: float = Field(default=1, ge=0, le=1, description="no effect: decoding is greedy")
    seed: Whole | None = Field(default=None, description="no effect: decoding is greedy")
    modalities: tuple[Literal["text"], ...] = Field(
        default=("text",), min_length=1, strict=False, description="images: /v1/images/generations"
    )
    stream: bool = Field(default=False, description="send the reply as server-sent events (in one chunk)")
    stream_options: StreamOptions = Field(default=StreamOptions(), description="options of a streamed reply")

    @property
    def token_limit(self) -> int:
        """Most tokens of the reply."""
        return min(self.max_completion_tokens or self.max_tokens or DEFAULT_TOKENS, MAX_TOKENS)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation as turns of the template."""
        return messages.to_turns(self.messages)

    @property
    def image(self) -> tuple[str, str] | None:
        """The path of the image's URL in the request, and the URL; None if there is no image."""
        for i, message in enumerate(self.messages):
            for j, part in enumerate(message.content):
                if isinstance(part, ImagePart):
                    return f"messages.{i}.content.{j}.image_url.url", part.image_url.url
        return None

    @field_validator("n")
    @classmethod
    def _one_reply(cls, value: int) -> int:
        if value != 1:
            raise ValueError(f"{fields.quoted(value)} is not offered, as a greedy reply has no variants: send 1")
        return value

    @model_validator(mode="after")
    def _answerable(self) -> Self:
        if wrong := messages.order_problem(self.messages):
            raise fault(("messages", *wrong.place), None, wrong.message)
        if (length := sum(len(message.text) for message in self.messages)) > MAX_PROMPT:
            message = f"the conversation has {length} characters, at most {MAX_PROMPT} are read: shorten it"
            raise fault(("messages",), None, message, kind="context_length_exceeded")
        return self

    @model_validator(mode="after")
    def _shows_one_image(self) -> Self:
        if wrong := messages.image_problem(self.messages):
            raise fault(("messages", *wrong.place), None, wrong.message)
        return self
