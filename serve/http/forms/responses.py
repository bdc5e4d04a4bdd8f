"""The body of `POST /v1/responses`."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, model_validator

from blip3o.data.text.templates import Turn
from blip3o.inference import messages
from serve.http.forms import fields
from serve.http.forms.base import Listed, Whole, fault
from serve.http.forms.conversations import DEFAULT_TOKENS, MAX_TOKENS, Drawing, check_conversation
from serve.http.forms.images import OutputFormat, Sampling
from serve.http.forms.messages import InputMessage, Picture, pictures
from serve.protocol import MAX_PARTIAL_IMAGES

IMAGE_TOOL = "image_generation"
_A_TOOL = '[{"type": "image_generation"}]'
# Items of earlier replies that say nothing to this model; clients send them back as they are.
_SILENT = ("image_generation_call", "reasoning")


class ImageTool(Sampling):
    """The tool that makes the response an image of the last user message."""

    neutral = fields.IMAGE_TOOL

    type: Literal["image_generation"]
    size: str = Field(default="auto", description="'auto', or the model's own size as WxH")
    background: Literal["auto", "opaque"] = Field(default="auto", description="images have no transparency")
    output_format: OutputFormat = Field(default="png", description="file format of the image")
    output_compression: Whole = Field(default=100, ge=0, le=100, description="quality of jpeg and webp, percent")
    partial_images: Whole = Field(
        default=0, ge=0, le=MAX_PARTIAL_IMAGES, description="previews of the image, if it is streamed"
    )


class _ItemType(BaseModel):
    type: Literal["message", "image_generation_call", "reasoning"] = "message"


def _read_item(value: object) -> InputMessage | None:
    if isinstance(value, dict) and _ItemType.model_validate({"type": value.get("type") or "message"}).type in _SILENT:
        return None
    return InputMessage.model_validate(value)


def _listed(value: object) -> object:
    """The input as items: a string is a message of the user's."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _name_of(value: object) -> object:
    """A choice of tool by its name."""
    return value["type"] if isinstance(value, dict) and set(value) == {"type"} else value


Item = Annotated[InputMessage | None, PlainValidator(_read_item, json_schema_input_type=dict[str, Any])]
Items = Annotated[Listed[Item], BeforeValidator(_listed, json_schema_input_type=str | list[dict[str, Any]])]
Choice = Annotated[
    Literal["none", "auto", "required", "image_generation"],
    BeforeValidator(_name_of, json_schema_input_type=str | dict[str, Any]),
]


class ResponsesBody(Drawing):
    """Body of `POST /v1/responses`."""

    neutral = fields.RESPONSES

    input: Items = Field(min_length=1, strict=False, description="a question, or a conversation")
    instructions: str | None = Field(
        default=None, description="a system message before the input", json_schema_extra={"mapped_to": "input"}
    )
    model: str | None = Field(default=None, description="the served model's name, if given")
    max_output_tokens: Whole | None = Field(
        default=None, ge=1, description=f"most tokens in the reply, capped at {MAX_TOKENS}; {DEFAULT_TOKENS} if omitted"
    )
    tools: Listed[ImageTool] = Field(
        default=(), max_length=1, strict=False, description="only image_generation: the response is an image"
    )
    tool_choice: Choice = Field(default="auto", description='"none" leaves the tool out; else the tool given is used')
    stream: bool = Field(default=False, description="send the response as server-sent events")

    @property
    def token_limit(self) -> int:
        """Most tokens of the reply."""
        return min(self.max_output_tokens or DEFAULT_TOKENS, MAX_TOKENS)

    @property
    def tool(self) -> ImageTool | None:
        """The tool to use, if any."""
        return self.tools[0] if self.tools and self.tool_choice != "none" else None

    @property
    def messages(self) -> tuple[InputMessage, ...]:
        """The messages of the input."""
        return tuple(item for item in self.input if item is not None)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation as turns of the template, with the instructions in front."""
        if self.instructions is None:
            return messages.to_turns(self.messages)
        system = InputMessage.model_validate({"role": "system", "content": self.instructions})
        return messages.to_turns((system, *self.messages))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The images of the conversation."""
        return pictures((f"input.{place}", item) for place, item in enumerate(self.input) if item is not None)

    @property
    def image_prompt(self) -> str:
        """The text of the last message, which is the user's."""
        return self.messages[-1].text

    @model_validator(mode="after")
    def _answerable(self) -> Self:
        check_conversation(self.input, "input", instructions=self.instructions or "")
        return self

    @model_validator(mode="after")
    def _has_the_tool(self) -> Self:
        if self.tool_choice in ("required", IMAGE_TOOL) and not self.tools:
            raise fault(("tool_choice",), None, f"a tool is required, and tools has none: send {_A_TOOL}")
        return self
