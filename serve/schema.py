"""What clients may send: OpenAI's fields that this server honours, and its own extensions of the images route.

A field that would change the answer and is not honoured is refused, never swallowed: unknown fields are errors, and so
are unsupported values of known ones. Fields without effect are in `serve.fields` and pass. `null` means "not given",
as in OpenAI's clients. Types are JSON's, without coercion; 16.0 is a whole number.
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
from serve import fields
from serve.protocol import MAX_IMAGES

MAX_PROMPT = 32_000  # characters, as in OpenAI's API; the model's own limit in tokens is far lower
MAX_SEED = 2**53 - 1 - MAX_IMAGES  # what every JSON client can carry
MAX_STEPS = 250
MAX_TOKENS = 512
DEFAULT_TOKENS = 64
UNKNOWN = "unknown_parameter"

Json = dict[str, Any]


def fault(place: tuple[str | int, ...], value: object, message: str, *, kind: str = "value_error") -> ValidationError:
    """An error at a place below the form that is being read; pydantic puts that form's own place before it."""
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
        """Whether a field says anything. Raises `ValidationError` for what would change the answer, unhonoured."""
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

    prompt: str = Field(max_length=MAX_PROMPT, description="what the image shows")
    model: str | None = Field(default=None, description="the served model's name, if given")
    n: Whole = Field(default=1, ge=1, le=MAX_IMAGES, description="images; the i-th one is made from seed + i")
    size: str = Field(default="auto", description="'auto', or the model's own size as WxH")
    quality: Literal["auto", "standard"] = Field(default="auto", description="see num_inference_steps")
    background: Literal["auto", "opaque"] = Field(default="auto", description="images have no transparency")
    output_format: Literal["png", "jpeg", "webp"] = Field(default="png", description="file format of the images")
    output_compression: Whole = Field(default=100, ge=0, le=100, description="quality of jpeg and webp, percent")
    response_format: str = Field(default="b64_json", description="only b64_json")
    stream: bool = Field(default=False, description="only false")
    partial_images: Whole = Field(default=0, description="only 0")
    seed: Whole | None = Field(default=None, ge=0, le=MAX_SEED, description="random if not given; the reply names it")
    num_inference_steps: Whole | None = Field(
        default=None, ge=1, le=MAX_STEPS, description="DiT evaluations per branch"
    )
    guidance_scale: float | None = Field(default=None, ge=0, le=100, description="1: no guidance, and half the work")

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
    """What another model said in place of an answer; part of a conversation like any text."""

    neutral = fields.PART

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """Its words."""
        return self.refusal


class ImageUrl(Body):
    """Where an image is."""

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
    """The type of a part. Chosen by hand: a tagged union would put its tags among the places of its errors."""

    type: Literal["text", "image_url", "refusal"]


_PARTS: dict[str, type[Part]] = {"text": TextPart, "refusal": RefusalPart, "image_url": ImagePart}


def _read_part(value: object) -> Part:
    return _PARTS[_PartType.model_validate(value).type].model_validate(value)


Parts = tuple[Annotated[Part, PlainValidator(_read_part)], ...]
_PARTS_OF_A_LIST: TypeAdapter[Parts] = TypeAdapter(Parts)


class Message(Body):
    """One turn of a conversation; plain text counts as one text part, and an assistant's null as none."""

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
        """The text of the message, its parts on lines of their own."""
        return "\n".join(part.text for part in self.content if not isinstance(part, ImagePart)) or self.refusal or ""

    @property
    def image_indices(self) -> tuple[int, ...]:
        """Which of its parts are images."""
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
    temperature: float = Field(default=0, ge=0, le=2, description="accepted; decoding is greedy whatever it says")
    top_p: float = Field(default=1, ge=0, le=1, description="accepted; decoding is greedy whatever it says")
    seed: Whole | None = Field(default=None, description="accepted; a greedy reply needs none")
    modalities: tuple[Literal["text"], ...] = Field(
        default=("text",), min_length=1, strict=False, description="images: /v1/images/generations"
    )
    stream: bool = Field(default=False, description="send the reply as server-sent events (in one piece)")
    stream_options: StreamOptions = Field(default=StreamOptions(), description="of a reply that is streamed")

    @property
    def token_limit(self) -> int:
        """Most tokens of the reply."""
        return min(self.max_completion_tokens or self.max_tokens or DEFAULT_TOKENS, MAX_TOKENS)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation as the template takes it."""
        return messages.to_turns(self.messages)

    @property
    def image(self) -> tuple[str, str] | None:
        """The conversation's image, if there is one: the path of its URL in the request, and the URL."""
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
