"""What every config class shares. It needs no torch, so any laptop can read, check and print a recipe."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of every config: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _require(condition: bool, message: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not condition:
        raise ValueError(message)
