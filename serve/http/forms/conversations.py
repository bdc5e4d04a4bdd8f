"""What both routes that reply have in common: how a reply is drawn, and what makes a conversation answerable."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from blip3o.inference import messages
from serve.http.forms.base import MAX_PROMPT, Body, Listed, Whole, fault
from serve.http.forms.messages import Message

MAX_TOKENS = 512
DEFAULT_TOKENS = 64
MAX_STOPS = 4  # as in OpenAI's API
MAX_STOP = 200  # characters


def _listed(value: Any) -> Any:  # noqa: ANN401 - whatever JSON the client sent
    """One stop text or several, as a tuple; empty ones stop nothing."""
    texts = (value,) if isinstance(value, str) else value
    return tuple(text for text in texts if text != "") if isinstance(texts, list | tuple) else value


StopText = Annotated[str, Field(max_length=MAX_STOP)]
Stops = Annotated[Listed[StopText], BeforeValidator(_listed, json_schema_input_type=str | list[str])]


class Drawing(Body):
    """How the tokens of a reply are drawn."""

    temperature: float = Field(
        default=0, ge=0, le=2, description="0 is greedy: the same conversation gives the same reply"
    )
    top_p: float = Field(
        default=1, ge=0, le=1, description="samples from the most likely tokens with this total probability"
    )
    seed: Whole | None = Field(
        default=None, ge=-(2**63), lt=2**63, description="seed of sampling and of images; random if omitted"
    )


def check_conversation(items: Sequence[Message | None], field: str, *, instructions: str = "") -> None:
    """Raises `ValidationError`, with a path below `field`, for roles, a length or an image that are not read.

    Items that are None say nothing. `instructions` count as text.
    """
    places = [place for place, item in enumerate(items) if item is not None]
    asked = [item for item in items if item is not None]
    if wrong := messages.order_problem(asked) or messages.image_problem(asked):
        number, *rest = wrong.place or (None,)
        place = () if number is None else (places[int(number)], *rest)
        raise fault((field, *place), None, wrong.message)
    if (length := len(instructions) + sum(len(message.text) for message in asked)) > MAX_PROMPT:
        message = f"the conversation has {length} characters, at most {MAX_PROMPT} are read: shorten it"
        raise fault((field,), None, message, kind="context_length_exceeded")
