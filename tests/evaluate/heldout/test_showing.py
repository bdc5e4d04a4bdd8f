"""What the grid shows: scenes by family, other sources where their drawings are recognisable, else their questions."""

import pytest
from PIL import Image

from blip3o.data.sets.scenes_world import FAMILIES
from blip3o.evaluate.heldout.selection import HeldOutSample
from blip3o.evaluate.heldout.showing import CARDS, ROWS, asked_sections, rows_to_show
from blip3o.evaluate.metrics.understanding import AnswerRecord
from blip3o.evaluate.reports.heldout import AnsweredPicture

PICTURE = Image.new("RGB", (8, 8))


def items(**sources):
    """Samples by source: families of scenes, or a number of other samples."""
    return [
        HeldOutSample(
            uid=f"{name}/0/{n}",
            source=name.replace("_", "-"),
            caption="a caption",
            record={"source": "scenes", "family": kind} if kind else {},
            image=PICTURE,
        )
        for name, kinds in sources.items()
        for n, kind in enumerate([None] * kinds if isinstance(kinds, int) else kinds)
    ]


def found(**r1):
    return {"by_source": {name: {"r1": share, "n": 10} for name, share in r1.items()}}


def test_scenes_come_first_with_one_prompt_of_each_family_in_the_order_of_the_world():
    drawn = [family for family in reversed(FAMILIES) for _ in range(2)]
    shown = rows_to_show(items(emoji=6, scenes=drawn), found(emoji=0.5, scenes=0.0))
    first = 6 + len(drawn)
    assert list(shown) == ["scenes", "emoji"]
    assert shown == {"scenes": [first - 2 * n for n in range(1, len(FAMILIES) + 1)], "emoji": [*range(ROWS)]}


@pytest.mark.parametrize(("share", "drawn"), [(0.5, True), (0.49, False)])
def test_another_source_is_drawn_where_half_of_it_finds_itself(share, drawn):
    shown = rows_to_show(items(emoji=6, scenes=FAMILIES), found(emoji=share, scenes=0.0))
    assert ("emoji" in shown) is drawn
    asked = asked_sections([reply(name) for name in ("scenes", "emoji") * 9], shown, found(emoji=share))
    assert (
        [section.title for section in asked] == []
        if drawn
        else ["emoji: 49% of 10 drawings find their own image first, less than 50%, so questions are shown"]
    )
    assert [len(section.cards) for section in asked] == ([] if drawn else [CARDS])


def test_sources_that_are_all_that_there_is_are_drawn_whatever_they_look_like():
    mine = items(mine=5, others=2)
    assert rows_to_show(mine, found(mine=0.0, others=0.1)) == {"mine": [0, 1, 2, 3], "others": [5, 6]}


def test_a_source_without_figures_is_drawn():
    assert list(rows_to_show(items(single=1, mine=3), found(mine=0.0))) == ["single"]
    assert list(rows_to_show(items(single=1, mine=3), found(single=None, mine=0.0))) == ["single"]


def reply(source):
    record = AnswerRecord(
        uid=f"{source}/0/1", source=source, kind="group", question="Which?", choices=(), answer="food", reply="food"
    )
    return AnsweredPicture(record=record, image=PICTURE)
