"""What is drawn and asked is stratified, distinct, and in the order of the draw."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from blip3o.evaluate.heldout.selection import HeldOutSample, distinct_captions, pick_questions, shares

PICTURE = Image.new("RGB", (8, 8))


def item(number, caption="a cat", kinds=()):
    qa = [{"kind": kind, "question": f"{kind}?", "answer": "yes", "choices": ["yes", "no"]} for kind in kinds]
    return HeldOutSample(uid=f"s/0/{number}", source="s", caption=caption, record={"qa": qa}, image=PICTURE)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), st.integers(0, 300))
def test_shares_add_up_and_are_within_one_of_proportion(weights, total):
    parts = shares(weights, total)
    assert sum(parts) == total
    assert all(abs(part - total * weight / sum(weights)) < 1 for part, weight in zip(parts, weights, strict=True))


def test_shares_of_a_remainder():
    assert shares([1, 1, 1], 8) == [3, 3, 2]
    assert shares([1, 3], 128) == [32, 96]


def test_captions_are_distinct_and_keep_the_order():
    items = [item(i, caption) for i, caption in enumerate(["a cat", "A cat.", "a dog", "a cow", "a dog", "a pig"])]
    assert [x.uid for x in distinct_captions(items, 3)] == ["s/0/0", "s/0/2", "s/0/3"]
    assert [x.caption for x in distinct_captions(items, 9, taken=["a dog"])] == ["a cat", "a cow", "a pig"]


@pytest.mark.parametrize("limit", [0, 1])
@pytest.mark.parametrize("choose", [distinct_captions, pick_questions])
def test_no_more_is_read_than_needed(choose, limit):
    def stream():
        yield from [item(0, "a cat", kinds=("color",))] * limit
        pytest.fail("read on")

    assert len(choose(stream(), limit)) == limit


def test_kinds_take_turns_and_each_picture_is_asked_about_once():
    items = [item(i, kinds=("color", "shape", "count")) for i in range(9)]
    chosen = pick_questions(items, 7)
    assert [q.kind for q in chosen] == ["color", "shape", "count", "color", "shape", "count", "color"]
    assert len({q.item.uid for q in chosen}) == 7


def test_a_rare_kind_is_asked_where_it_can_be():
    items = [item(0, kinds=("color",)), item(1, kinds=("color", "position")), item(2, kinds=("color",)), item(3)]
    chosen = pick_questions(items, 10)
    assert [(q.item.uid, q.kind) for q in chosen] == [("s/0/0", "color"), ("s/0/1", "position"), ("s/0/2", "color")]
    assert chosen[1].choices == ("yes", "no")
