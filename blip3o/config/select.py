"""Which samples of a source are trained on, as data: bounds on what indexing noted of each sample."""

from typing import Literal, Self

from pydantic import Field, model_validator

from blip3o.config.base import Frozen, _require

# A bound or the accepted values of one field.
Rule = dict[Literal["min", "max", "in"], float | tuple[bool | int | float | str, ...]]


class SelectConfig(Frozen):
    """Bounds that a sample must keep to be used; nothing is left out where none is set."""

    min_side: int | None = Field(default=None, gt=0, description="shorter side of the picture, pixels, at least")
    max_aspect: float | None = Field(default=None, ge=1, description="longer over shorter side of the picture, at most")
    min_caption_chars: int | None = Field(default=None, gt=0, description="characters of the caption, at least")
    max_caption_chars: int | None = Field(default=None, gt=0, description="characters of the caption, at most")
    where: dict[str, Rule] = Field(
        default={},
        description="rules for values of the sample's record, by name, as {score: {min: 5.0}, language: {in: [en]}}; "
        "bounds are inclusive, and a sample without a value named here is left out",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        low, high = self.min_caption_chars or 0, self.max_caption_chars
        _require(high is None or low <= high, f"select: min_caption_chars {low} is above max_caption_chars {high}")
        for name, rule in self.where.items():
            bounds = [rule.get("min"), rule.get("max")]
            _require(bool(rule), f"select.where: '{name}' has no rule: give min, max or in")
            _require(
                not any(isinstance(bound, tuple) for bound in bounds),
                f"select.where: min and max of '{name}' are single numbers, and one is a list: use in",
            )
            _require(
                isinstance(rule.get("in", ()), tuple) and rule.get("in") != (),
                f"select.where: in of '{name}' is a list of the accepted values, with at least one",
            )
        return self

    @property
    def empty(self) -> bool:
        """Whether every sample is used."""
        return self == SelectConfig()
