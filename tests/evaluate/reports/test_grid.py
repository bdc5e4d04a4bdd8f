"""The grid has the size it announces, every picture in its place, and captions that fit."""

import pytest
from PIL import Image, ImageFont

from blip3o.evaluate.reports.grid import (
    TILE,
    AskedCard,
    AskedSection,
    GridRow,
    GridSection,
    grid_size,
    plain,
    render_grid,
    wrap,
)

COLORS = ["#ff0000", "#00ff00", "#0000ff", "#ffff00", "#ff00ff"]


def row(caption="a red circle"):
    pictures = [Image.new("RGB", (64, 64), color) for color in COLORS]
    return GridRow(caption=caption, truth=pictures[0], decoded=pictures[1], drawn=tuple(pictures[2:]))


def test_size_and_all_pictures():
    sections = [GridSection(title="emoji", rows=(row(), row())), GridSection(title="scenes", rows=(row(),))]
    grid = render_grid(sections, title="Drawings", subtitle="held-out prompts")
    assert grid.size == grid_size(sections)
    counts = {color: number for number, color in grid.getcolors(maxcolors=1 << 24)}
    for color in COLORS:
        rgb = tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))
        assert counts[rgb] == 3 * (TILE - 2) ** 2  # all but the hairline around it


def test_pictures_stand_in_the_order_of_the_headings():
    grid = render_grid([GridSection(title="s", rows=(row(),))], title="t", subtitle="u")
    line = [grid.getpixel((x, grid.height - 40 - TILE // 2)) for x in range(grid.width)]
    firsts = [line.index(tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))) for color in COLORS]
    assert firsts == sorted(firsts)


def test_a_caption_changes_only_its_column():
    first, second = (
        render_grid([GridSection(title="s", rows=(row(caption),))], title="t", subtitle="u")
        for caption in ("a red circle", "a very long caption " * 30)
    )
    pictures = (280, 0, first.width, first.height)
    assert first.tobytes() != second.tobytes()
    assert first.crop(pictures).tobytes() == second.crop(pictures).tobytes()


@pytest.mark.parametrize("width", [60, 120, 300])
def test_lines_fit_and_lose_no_word(width):
    font = ImageFont.load_default(size=17)
    words = "a 3D emoji of a person in a suit levitating over the ground"
    lines = wrap(words, font, width)
    told = " ".join(lines)
    assert {word for word in words.split() if font.getlength(word) <= width} <= {*told.split()}
    assert told.replace(" ", "") == words.replace(" ", "")
    assert all(font.getlength(line) <= width for line in lines)
    unspaced = wrap("猫" * 40, font, width)
    assert "".join(unspaced) == "猫" * 40
    assert max(map(font.getlength, unspaced)) <= width


def test_what_the_font_lacks_is_spelled_without_it():
    assert plain("a piñata at one o’clock – São Tomé") == "a pinata at one o'clock - Sao Tome"
    assert plain("one 🐈 and ❤\ufe0f, 5 $ + 2") == "one [cat] and [heavy black heart], 5 $ + 2"


def test_questions_stand_below_the_drawings_and_change_nothing_there():
    sections = [GridSection(title="s", rows=(row(),))]
    cards = [
        AskedCard(image=Image.new("RGB", (9, 9), color), question="What? " * 40, reply="food", answer="x", right=right)
        for color, right in (("#123456", True), ("#654321", False), ("#abcdef", True))
    ]
    asked = [AskedSection(title="emoji", cards=tuple(cards))]
    alone = render_grid(sections, title="t", subtitle="u")
    both = render_grid(sections, title="t", subtitle="u", asked=asked)
    assert both.size == grid_size(sections, asked) and both.height > alone.height
    above = (0, 0, alone.width, alone.height - 40)  # all but the lower margin
    assert both.crop(above).tobytes() == alone.crop(above).tobytes()
    counts = {color: number for number, color in both.getcolors(maxcolors=1 << 24)}
    assert len({counts[color] for color in ((18, 52, 86), (101, 67, 33), (171, 205, 239))}) == 1
