"""The columns that may hold a table's picture and caption."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IMAGE_COLUMNS = ("image", "img_path", "image_path", "file_name", "filename", "file", "path")
# Known too, but only where none of those says which picture it is.
_MORE_IMAGE_COLUMNS = (
    *("img", "images", "image_file", "image_filename", "image_name", "filepath", "file_path", "photo", "picture"),
    *("image_url", "url"),
)
CAPTION_COLUMNS = ("caption", "text", "prompt")
_MORE_CAPTION_COLUMNS = ("txt", "comment", "description", "sentence", "alt_text", "alt")
TALKS = ("conversations", "messages")
LISTS = ("conversations", "captions", "qa", "caption_qa")


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Which columns of a table hold picture and caption, and what delimits a CSV; None if that is detected."""

    image_column: str | None = None
    caption_column: str | None = None
    delimiter: str | None = None

    def is_image(self, name: str) -> bool:
        """Whether a column of this name can hold the picture."""
        return name.lower() in self.image_names

    def is_word(self, name: str) -> bool:
        """Whether a column of this name holds text, also where it looks like a number."""
        known = (*IMAGE_COLUMNS, *CAPTION_COLUMNS, *_MORE_IMAGE_COLUMNS, *_MORE_CAPTION_COLUMNS)
        return name.lower() in (*known, *_lowered(self.image_column), *_lowered(self.caption_column))

    def is_row(self, value: Mapping[str, Any]) -> bool:
        """Whether an object is a row itself, and not something that holds rows."""
        if any(_is_talk(value.get(name)) for name in TALKS):
            return True
        texts = {name.lower() for name in value} & {*self.caption_names, *TALKS, *LISTS}
        return any(self.is_image(name) and (texts or isinstance(held, str)) for name, held in value.items())

    @property
    def expected(self) -> str:
        """What a header should have, in words."""
        if self.image_column:
            return f"--image-column says '{self.image_column}'"
        return f"the picture's path is expected in {', '.join(IMAGE_COLUMNS)}, or --image-column says where it is"

    @property
    def image_names(self) -> tuple[str, ...]:
        """The names of the picture's column in lower case, the likeliest first."""
        return _lowered(self.image_column) or (*IMAGE_COLUMNS, *_MORE_IMAGE_COLUMNS)

    @property
    def caption_names(self) -> tuple[str, ...]:
        """The names of the caption's column in lower case, the likeliest first."""
        return _lowered(self.caption_column) or (*CAPTION_COLUMNS, *_MORE_CAPTION_COLUMNS)


def _is_talk(value: object) -> bool:
    turn = value[0] if isinstance(value, list) and value else None
    return isinstance(turn, dict) and not turn.keys().isdisjoint(("from", "role"))


def _lowered(name: str | None) -> tuple[str, ...]:
    return (name.strip().lower(),) if name else ()
