"""How shards are read: limits of a sample, and which members of tars and columns of Parquet files make one."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from blip3o.config.base import Frozen, _require

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
        _require(len(set(named)) == len(named), f"members: {', '.join(named)}: name each extension once")
        return self
