"""What all request bodies share: JSON's types, `null` as "not given", and fields that change nothing.

A field that would change the answer but is not supported is rejected, never ignored: unknown fields are errors, and so
are unsupported values of known ones. `serve.http.forms.fields` lists those without effect, which are accepted. `null`
means "not given", as in OpenAI's clients. Types are JSON's, without coercion; 16.0 is a whole number.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from serve.http.forms import fields

MAX_PROMPT = 32_000  # characters, as in OpenAI's API; the model's own limit in tokens is far lower
UNKNOWN = "unknown_parameter"


def fault(place: tuple[str | int, ...], value: object, message: str, *, kind: str = "value_error") -> ValidationError:
    """An error at a path below the form that is being parsed; pydantic prepends that form's own path."""
    # The message may quote the client, and pydantic would read braces in it as a template.
    error = PydanticCustomError(kind, "{message}", {"message": message})
    return ValidationError.from_exception_data("body", [InitErrorDetails(type=error, loc=place, input=value)])


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]

T = TypeVar("T")

# A list whose first fault ends the checks: only one is reported, and a client may send a million.
Listed = Annotated[tuple[T, ...], FailFast()]


class Body(BaseModel):
    """Base of every request body."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    neutral: ClassVar[fields.Fields] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral_fields(cls, data: Any) -> Any:  # noqa: ANN401 - whatever JSON the client sent
        if not isinstance(data, dict):
            return data
        idle = cls._idle(data)
        return {name: value for name, value in data.items() if name not in idle and cls._is_effective(name, value)}

    @classmethod
    def _idle(cls, data: Mapping[str, Any]) -> Collection[str]:
        """The fields that have no effect next to the others, at any value."""
        return ()

    @classmethod
    def _is_effective(cls, name: str, value: object) -> bool:
        """Whether a field has an effect. Raises `ValidationError` for an unsupported value."""
        rule = cls.neutral.get(name)
        if value is None or isinstance(rule, fields.Ignored):
            return False
        if isinstance(rule, fields.Refused):
            raise fault((name,), value, f"is not offered here: {rule.why}", kind=UNKNOWN)
        if rule is not None and not rule.allows(value):
            shown = fields.quoted(value)
            message = f"{shown} would change the answer and is not honoured here: send {rule}, or nothing"
            raise fault((name,), value, message, kind=UNKNOWN)
        return rule is None
