"""What every config class shares. It needs no torch, so any laptop can read, check and print a recipe."""

from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_DATA = ("default", "metadata", "serialization")  # of a schema: no schemas themselves


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _choice(value: object) -> object:
    # To Python `True` is one of (0, 1, 2).
    return str(value).lower() if isinstance(value, bool) else value


def _strict(schema: Any, *, alone: bool = True) -> Any:  # noqa: ANN401 - pydantic's nested dictionaries
    """A schema that does not convert values. `alone` is false inside a union, where the type of a value chooses."""
    if isinstance(schema, list):
        return [_strict(item, alone=alone) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind == "model" or (kind == "function-before" and schema["function"]["function"] in (_whole, _choice)):
        return schema
    if kind in ("int", "float", "bool", "str"):
        strict = {**schema, "strict": True}
        return core_schema.no_info_before_validator_function(_whole, strict) if kind == "int" and alone else strict
    if kind == "literal":
        numbers = any(isinstance(item, int) for item in schema["expected"])
        return core_schema.no_info_before_validator_function(_choice, schema) if numbers else schema
    alone = alone and kind != "union"
    return {key: value if key in _DATA else _strict(value, alone=alone) for key, value in schema.items()}


class Frozen(BaseModel):
    """Base of every config: immutable, an unknown key is an error, and a value must be of its field's type.

    Texts and truth values are not numbers, numbers are not texts, and no number is infinite. A number without a
    fraction (`200.0`, `1e5`) counts as a whole one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler, /) -> CoreSchema:  # noqa: ANN401
        """The class's schema, without pydantic's conversions."""
        schema = handler(source)
        inner: Any = schema
        while inner["type"] != "model":  # the class's own validators stand around it
            inner = inner["schema"]
        inner["schema"] = _strict(inner["schema"])
        return schema


def _require(condition: bool, message: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not condition:
        raise ValueError(message)
