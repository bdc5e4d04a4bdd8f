"""Conversations in LLaVA's form: told in order, without the image's mark; what cannot be told is damage."""

import pytest

from blip3o.data.conversations import conversation_pairs
from blip3o.data.damage import DamagedSampleError


def turns(*said: tuple[str, object]) -> list[dict]:
    return [{"from": who, "value": value} for who, value in said]


def test_questions_and_answers_come_in_order_without_the_mark():
    told = turns(("human", "<image>\nwhat?"), ("gpt", " a dot "), ("human", "big?"), ("gpt", "no"))
    assert conversation_pairs(told) == [("what?", "a dot"), ("big?", "no")]
    assert conversation_pairs(turns(("user", "what?\n<image>"), ("assistant", "a dot"))) == [("what?", "a dot")]


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("text", "is not a list"),
        ([], "is not a list"),
        (turns(("human", "?")), "each with its answer"),
        (turns(("gpt", "a"), ("human", "?")), "does not alternate"),
        (turns(("system", "be good"), ("gpt", "a")), "does not alternate"),
        (["?", "a"], "does not alternate"),
        (turns(("human", "<image>"), ("gpt", "a")), "a turn that says nothing"),
        (turns(("human", "?"), ("gpt", None)), "a turn that says nothing"),
        (turns(("human", "<image> <image> which?"), ("gpt", "a")), "more than one <image>"),
    ],
)
def test_what_cannot_be_told_is_damage(told, reason):
    with pytest.raises(DamagedSampleError, match=reason):
        conversation_pairs(told)
