"""The image grid of a model: each held-out prompt with its true image, the decoder's limit, and several seeds.

Below the drawings there may be questions about pictures, with the replies. It lays out what it is given and selects
nothing. The built-in font has no accents and no emoji: captions are shown without the first, and name the second.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

TILE = 128  # pixels, a side
_GAP, _GROUP_GAP, _ROW_GAP = 6, 26, 10
_MARGIN, _CAPTION_WIDTH = 40, 218
_INK, _SOFT, _LINE = (24, 26, 31), (110, 116, 128), (222, 225, 230)
_TITLE, _SUBTITLE, _CAPTION, _SMALL = 30, 16, 17, 14  # font sizes, pixels
_HEAD = 104  # title, subtitle and the names of the columns
_SECTION_HEAD = 20  # the rule above a section
_MAX_LINES = 4  # of a caption
_CARD, _CARD_COLUMNS, _CARD_GAP = 96, 2, 14  # side of the picture of a question in pixels; cards in a row
_RIGHT, _WRONG = (29, 127, 76), (179, 55, 47)


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """One prompt: its true image, that image's features through the decoder, and one drawing per seed.

    `label` stands below the caption, in small letters.
    """

    caption: str
    truth: Image.Image
    decoded: Image.Image
    drawn: tuple[Image.Image, ...]
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class GridSection:
    """The rows of one source, under its name."""

    title: str
    rows: tuple[GridRow, ...]


@dataclass(frozen=True, kw_only=True)
class AskedCard:
    """A question about a picture, with the reply; `answer` is the true one."""

    image: Image.Image
    question: str
    reply: str
    answer: str
    right: bool


@dataclass(frozen=True, kw_only=True)
class AskedSection:
    """Questions about the pictures of one source, under its name."""

    title: str
    cards: tuple[AskedCard, ...]


def render_grid(
    sections: Sequence[GridSection], *, title: str, subtitle: str, asked: Sequence[AskedSection] = ()
) -> Image.Image:
    """The grid as an RGB image on white. All rows have the same number of drawings (at least one)."""
    width, height = grid_size(sections, asked)
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
    for asked_section in asked:
        _draw_asked(canvas, draw, asked_section, top)
        top += _asked_height(asked_section)
    return canvas


def grid_size(sections: Sequence[GridSection], asked: Sequence[AskedSection] = ()) -> tuple[int, int]:
    """Width and height of the grid in pixels."""
    rows = sum(len(section.rows) for section in sections)
    height = 2 * _MARGIN + _HEAD + len(sections) * _SECTION_HEAD + rows * (TILE + _ROW_GAP) - _ROW_GAP
    height += sum(map(_asked_height, asked))
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
    words = _shortened(row.caption, _font(_CAPTION), _CAPTION_WIDTH)
    draw.multiline_text((_MARGIN, top + TILE // 2), words, fill=_INK, font=_font(_CAPTION), spacing=5, anchor="lm")
    draw.text((_MARGIN, top + TILE - 18), plain(row.label), fill=_SOFT, font=_font(_SMALL))
    for left, picture in zip(_lefts(len(row.drawn)), (row.truth, row.decoded, *row.drawn), strict=True):
        _paste(canvas, draw, picture, (left, top), TILE)


def _asked_height(section: AskedSection) -> int:
    rows = -(-len(section.cards) // _CARD_COLUMNS)
    return _ROW_GAP + _SECTION_HEAD + 20 + rows * (_CARD + _CARD_GAP)


def _draw_asked(canvas: Image.Image, draw: ImageDraw.ImageDraw, section: AskedSection, top: int) -> None:
    draw.line([(_MARGIN, top + 8), (canvas.width - _MARGIN, top + 8)], fill=_LINE)
    draw.text((_MARGIN, top + 20), plain(section.title), fill=_SOFT, font=_font(_SMALL))
    width = (canvas.width - 2 * _MARGIN) // _CARD_COLUMNS
    room = width - _CARD - 3 * _CARD_GAP
    for number, card in enumerate(section.cards):
        row, column = divmod(number, _CARD_COLUMNS)
        left, upper = _MARGIN + column * width, top + _SECTION_HEAD + 38 + row * (_CARD + _CARD_GAP) - _ROW_GAP
        _paste(canvas, draw, card.image, (left, upper), _CARD)
        left += _CARD + _CARD_GAP
        question = _shortened(card.question, _font(_SMALL), room, lines=2)
        draw.multiline_text((left, upper + 6), question, fill=_SOFT, font=_font(_SMALL), spacing=4)
        reply = _shortened(card.reply or "(no reply)", _font(_CAPTION), room, lines=1)
        draw.text((left, upper + 46), reply, fill=_RIGHT if card.right else _WRONG, font=_font(_CAPTION))
        verdict = "right" if card.right else f"true answer: {card.answer}"
        draw.text((left, upper + 72), _shortened(verdict, _font(_SMALL), room, lines=1), fill=_SOFT, font=_font(_SMALL))


def _paste(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, picture: Image.Image, place: tuple[int, int], side: int
) -> None:
    left, top = place
    canvas.paste(picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), place)
    draw.rectangle((left, top, left + side - 1, top + side - 1), outline=_LINE)


def _shortened(words: str, font: ImageFont.FreeTypeFont, width: int, *, lines: int = _MAX_LINES) -> str:
    """The words in at most `lines` lines; an ellipsis for those that do not fit."""
    wrapped = wrap(plain(words), font, width)
    return "\n".join(wrapped if len(wrapped) <= lines else [*wrapped[: lines - 1], f"{wrapped[lines - 1]} …"])


def plain(text: str) -> str:
    """Text without accents, with straight apostrophes and hyphens for dashes, and with names for what has no glyph."""
    letters = unicodedata.normalize("NFKD", text.replace("’", "'").replace("–", "-"))
    return "".join(_drawable(letter) for letter in letters if unicodedata.category(letter) not in ("Mn", "Me", "Cf"))


@lru_cache(maxsize=4096)
def _drawable(letter: str) -> str:
    """A letter, or the name of a symbol that the font lacks, as `[cat face]`."""
    font = _font(_CAPTION)
    missing = bytes(font.getmask(letter)) == bytes(font.getmask("\uffff")) and unicodedata.category(letter)[0] == "S"
    return f"[{unicodedata.name(letter, 'symbol').lower()}]" if missing else letter


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The words in lines of at most `width` pixels. A word that is wider is split: some scripts have no spaces."""
    lines: list[str] = []
    for word in (piece for whole in text.split() for piece in _pieces(whole, font, width)):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _pieces(word: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A word in pieces of at most `width` pixels, each as long as it can be."""
    if font.getlength(word) <= width:
        return [word]
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow returns a bitmap font only without a size
    return font
