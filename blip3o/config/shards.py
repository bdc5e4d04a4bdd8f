"""How shards are read: limits of a sample, and which columns of Parquet files make one."""

from pydantic import Field

from blip3o.config.base import Frozen

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
