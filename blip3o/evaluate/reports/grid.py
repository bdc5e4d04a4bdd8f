"""The image grid of a model: each held-out prompt with its true image, the decoder's limit, and several seeds.

It lays out what it is given and selects nothing. The built-in font has no accents, so captions are shown without them.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

TILE = 128  # pixels, a side
_GAP, _GROUP_GAP, _ROW_GAP = 6, 26, 10
_MARGIN, _CAPTION_WIDTH = 40, 218
_INK, _SOFT, _LINE = (24, 26, 31), (110, 116, 128), (222, 225, 230)
_TITLE, _SUBTITLE, _CAPTION, _SMALL = 30, 16, 17, 14  # font sizes, pixels
_HEAD = 104  # title, subtitle and the names of the columns
_SECTION_HEAD = 20  # the rule above a section
_MAX_LINES = 4  # of a caption


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """One prompt: its true image, that image's features through the decoder, and one drawing per seed."""

    caption: str
    truth: Image.Image
    decoded: Image.Image
    drawn: tuple[Image.Image, ...]


@dataclass(frozen=True, kw_only=True)
class GridSection:
    """The rows of one source, under its name."""

    title: str
    rows: tuple[GridRow, ...]


def render_grid(sections: Sequence[GridSection], *, title: str, subtitle: str) -> Image.Image:
    """The grid as an RGB image on white. All rows have the same number of drawings (at least one)."""
    width, height = grid_size(sections)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN), plain(title), fill=_INK, font=_font(_TITLE))
    draw.text((_MARGIN, _MARGIN + 42), plain(subtitle), fill=_SOFT, font=_font(_SUBTITLE))
    _draw_headings(draw, len(sections[0].rows[0].drawn))
    top = _MARGIN + _HEAD
    for section in sections:
        draw.line([(_MARGIN, top + 8), (width - _MARGIN, top + 8)], fill=_LINE)
        draw.text((_MARGIN, top + 20), plain(section.title), fill=_SOFT, font=_font(_SMALL))
        top += _SECTION_HEAD
        for row in section.rows:
            _draw_row(canvas, draw, row, top)
            top += TILE + _ROW_GAP
    return canvas


def grid_size(sections: Sequence[GridSection]) -> tuple[int, int]:
    """Width and height of the grid in pixels."""
    rows = sum(len(section.rows) for section in sections)
    height = 2 * _MARGIN + _HEAD + len(sections) * _SECTION_HEAD + rows * (TILE + _ROW_GAP) - _ROW_GAP
    return _lefts(len(sections[0].rows[0].drawn))[-1] + TILE + _MARGIN, height


def _lefts(drawings: int) -> list[int]:
    """The left edges of all images of a row: truth, decoder's limit, then the drawings after a wider gap."""
    first = _MARGIN + _CAPTION_WIDTH + 16
    pair = [first, first + TILE + _GAP]
    start = pair[-1] + TILE + _GROUP_GAP
    return pair + [start + number * (TILE + _GAP) for number in range(drawings)]


def _draw_headings(draw: ImageDraw.ImageDraw, drawings: int) -> None:
    lefts = _lefts(drawings)
    names = ["original", "decoder's limit", *[f"seed {number}" for number in range(1, drawings + 1)]]
    for left, name in zip([_MARGIN, *lefts], ["prompt", *names], strict=True):
        draw.text((left, _MARGIN + _HEAD - 20), name, fill=_SOFT, font=_font(_SMALL))


def _draw_row(canvas: Image.Image, draw: ImageDraw.ImageDraw, row: GridRow, top: int) -> None:
    font = _font(_CAPTION)
    lines = wrap(plain(row.caption), font, _CAPTION_WIDTH)
    text = "\n".join(lines if len(lines) <= _MAX_LINES else [*lines[: _MAX_LINES - 1], f"{lines[_MAX_LINES - 1]} …"])
    draw.multiline_text((_MARGIN, top + TILE // 2), text, fill=_INK, font=font, spacing=5, anchor="lm")
    for left, picture in zip(_lefts(len(row.drawn)), (row.truth, row.decoded, *row.drawn), strict=True):
        canvas.paste(picture.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top))
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), outline=_LINE)


def plain(text: str) -> str:
    """Text without accents, and with straight apostrophes and hyphens for dashes."""
    letters = unicodedata.normalize("NFKD", text.replace("’", "'").replace("–", "-"))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The words in lines of at most `width` pixels, except for single words that are wider."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow returns a bitmap font only without a size
    return font
