"""How shards are read: limits of a sample, which members and columns make one, and which samples are trained on."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from blip3o.config.base import Frozen, require

# No limit can be set above these: what decodes and reads samples holds them too.
MAX_PIXELS = 100_000_000
MAX_CAPTION_CHARS = 100_000


class LimitsConfig(Frozen):
    """What is beyond these goes to the ledger when shards are indexed. Index again after a change."""

    max_pixels: int = Field(
        default=2**26,
        gt=0,
        le=MAX_PIXELS,
        description="pixels of an image (width x height); larger ones are refused by their header, before decoding",
    )
    max_caption_chars: int = Field(
        default=MAX_CAPTION_CHARS, gt=0, le=MAX_CAPTION_CHARS, description="characters of a caption"
    )


class ColumnsConfig(Frozen):
    """Columns of a Parquet source, where their names do not say enough. Index again after a change."""

    image: str | None = Field(
        default=None, description="column of image bytes, or of structs with a field `bytes`; null: by its usual names"
    )
    caption: str | None = Field(default=None, description="column of captions; null: by its usual names")
    record: tuple[str, ...] | None = Field(
        default=None, description="columns that make the record; null: all others but those of bytes"
    )


KeyRule = Literal["first_dot", "last_dot"]
Extension = Annotated[str, StringConstraints(to_lower=True, pattern=r"^[^./]([^/]*[^./])?$")]


class MembersConfig(Frozen):
    """Members of a tar source by extension, where the usual ones do not fit. Index again after a change.

    An extension is what follows the key of a member's name, in any case: `input.jpg` of `0001.input.jpg`. Where one is
    named here, other members of its kind are left unused on purpose.
    """

    image: Extension | None = Field(
        default=None, description="extension of pictures, e.g. input.jpg; null: the usual ones"
    )
    caption: Extension | None = Field(default=None, description="extension of captions, e.g. outputs.txt; null: txt")
    record: Extension | None = Field(default=None, description="extension of records, e.g. meta.json; null: json")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        named = [name for name in (self.image, self.caption, self.record) if name is not None]
        require(len(set(named)) == len(named), f"members: {', '.join(named)}: name each extension once")
        return self


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
        require(high is None or low <= high, f"select: min_caption_chars {low} is above max_caption_chars {high}")
        for name, rule in self.where.items():
            bounds = [rule.get("min"), rule.get("max")]
            require(bool(rule), f"select.where: '{name}' has no rule: give min, max or in")
            require(
                not any(isinstance(bound, tuple) for bound in bounds),
                f"select.where: min and max of '{name}' are single numbers, and one is a list: use in",
            )
            require(
                isinstance(rule.get("in", ()), tuple) and rule.get("in") != (),
                f"select.where: in of '{name}' is a list of the accepted values, with at least one",
            )
        return self

    @property
    def empty(self) -> bool:
        """Whether every sample is used."""
        return self == SelectConfig()
