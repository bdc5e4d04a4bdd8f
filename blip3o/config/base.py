"""The base of every config class. Imports no torch, so any laptop can read, check and print a recipe."""

from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_DATA = ("default", "metadata", "serialization")  # entries of a schema that are not schemas


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _choice(value: object) -> object:
    # In Python, `True` is in (0, 1, 2).
    return str(value).lower() if isinstance(value, bool) else value


def _strict(schema: Any, *, in_union: bool = False) -> Any:  # noqa: ANN401 - pydantic's nested dictionaries
    """A schema that converts no values. In a union, not even 200.0 to 200: the value's type selects the member."""
    if isinstance(schema, list):
        return [_strict(item, in_union=in_union) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind == "model" or (kind == "function-before" and schema["function"]["function"] in (_whole, _choice)):
        return schema
    if kind in ("int", "float", "bool", "str"):
        strict = {**schema, "strict": True}
        return (
            core_schema.no_info_before_validator_function(_whole, strict) if kind == "int" and not in_union else strict
        )
    if kind == "literal":
        numbers = any(isinstance(item, int) for item in schema["expected"])
        return core_schema.no_info_before_validator_function(_choice, schema) if numbers else schema
    in_union = in_union or kind == "union"
    return {key: value if key in _DATA else _strict(value, in_union=in_union) for key, value in schema.items()}


class Frozen(BaseModel):
    """Base of every config: immutable, an unknown key is an error, and a value must have its field's type.

    Strings and booleans are not numbers, numbers are not strings, and no number is infinite. A number without a
    fraction (`200.0`, `1e5`) is accepted as an integer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler, /) -> CoreSchema:  # noqa: ANN401
        """The class's schema, without pydantic's conversions."""
        schema = handler(source)
        inner: Any = schema
        while inner["type"] != "model":  # the class's own validators wrap it
            inner = inner["schema"]
        inner["schema"] = _strict(inner["schema"])
        return schema


def require(condition: bool, message: str) -> None:  # noqa: FBT001 - reads as an assertion
    """Raises `ValueError` with this message unless the condition holds; pydantic turns it into a validation error."""
    if not condition:
        raise ValueError(message)
