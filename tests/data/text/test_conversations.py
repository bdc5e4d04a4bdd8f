"""Conversations in LLaVA's and OpenAI's form, told in order without the image's mark; what cannot be told is damage."""

import pytest

from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.text.conversations import conversation_pairs, image_sources, without_sources


def turns(*said: tuple[str, object]) -> list[dict]:
    return [{"from": who, "value": value} for who, value in said]


def messages(*said: tuple[str, object]) -> list[dict]:
    return [{"role": who, "content": value} for who, value in said]


PICTURE = {"type": "image_url", "image_url": {"url": "a.png"}}
ASKED = {"type": "text", "text": "what?"}


def test_questions_and_answers_come_in_order_without_the_mark():
    told = turns(("human", "<image>\nwhat?"), ("gpt", " a dot "), ("human", "big?"), ("gpt", "no"))
    assert conversation_pairs(told) == [("what?", "a dot"), ("big?", "no")]
    assert conversation_pairs(turns(("user", "what?\n<image>"), ("assistant", "a dot"))) == [("what?", "a dot")]


@pytest.mark.parametrize(
    "told",
    [
        turns(("Human", "what?"), ("GPT", "a dot")),
        turns(("human", "what?"), ("chatgpt", "a dot")),
        turns(("user", "what?"), ("model", "a dot")),
        turns(("USER ", "what?"), ("bot", "a dot")),
        turns(("system", "be good"), ("human", "<image>what?"), ("gpt", "a dot")),
        turns(("system", None), ("human", "what? <image>"), ("gpt", "a dot")),
        messages(("user", "<image>\nwhat?"), ("assistant", "a dot")),
        messages(("developer", [ASKED]), ("user", [PICTURE, ASKED]), ("assistant", "a dot")),
        messages(("user", [ASKED, {"type": "image", "image": "a.png"}]), ("assistant", [{"text": "a dot"}])),
        messages(
            ("user", [{"type": "input_image"}, "what?"]), ("assistant", [{"type": "output_text", "text": "a dot"}])
        ),
        [{"role": "user", "value": "what?"}, {"from": "gpt", "content": "a dot"}],
        [{"role": "user", "text": "what?"}, {"role": "assistant", "text": "a dot"}],
    ],
)
def test_the_usual_shapes_say_the_same(told):
    assert conversation_pairs(told) == [("what?", "a dot")]


def test_an_answer_stays_as_it_is_and_numbers_are_texts():
    told = turns(
        ("human", "How is it <image> marked up?"), ("gpt", "With <image>, as <image>."), ("user", 3), ("gpt", 0.5)
    )
    assert conversation_pairs(told) == [("How is it  marked up?", "With <image>, as <image>."), ("3", "0.5")]


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("text", "is not a list of questions, each with its answer: it is a str$"),
        ([], "is not a list of questions, each with its answer: it is empty$"),
        (turns(("system", "be good")), "is not a list of questions.*: there is only a system turn$"),
        (turns(("human", "?")), r"each with its answer: turn 1 \('human'\) is the last$"),
        (turns(("human", "?"), ("gpt", "a"), ("human", "!")), r"its answer: turn 3 \('human'\) is the last$"),
        (turns(("gpt", "a"), ("human", "?")), r"does not alternate.*: turn 1 \('gpt'\) is where a question should be"),
        (turns(("human", "?"), ("Human", "?"), ("gpt", "a")), r"turn 2 \('Human'\) is where an answer should be"),
        (turns(("human", "?"), ("system", "no"), ("gpt", "a")), r"turn 2 \('system'\) is where an answer should be"),
        (turns(("human", "?"), ("tool", "a")), "an unknown role: turn 2 is 'tool'$"),
        (turns(("system", "be good"), ("gpt", "a")), r"turn 2 \('gpt'\) is where a question"),
        (["?", "a"], "without a role: turn 1 is a str"),
        ([{"speaker": "a", "says": "b"}], "without a role: turn 1 has speaker, says, no 'from' or 'role'$"),
        ([{"from": None, "value": 1}], "without a role: turn 1 has from, value"),
        (turns(("human", "<image>"), ("gpt", "a")), r"a turn that says nothing: turn 1 \('human'\)"),
        (turns(("human", "?"), ("gpt", None)), r"a turn that says nothing: turn 2 \('gpt'\)"),
        (messages(("user", [PICTURE]), ("assistant", "a")), r"a turn that says nothing: turn 1 \('user'\)"),
        (turns(("human", "?"), ("gpt", {"a": 1})), r"is no text: turn 2 \('gpt'\) holds a dict"),
        (turns(("human", "?"), ("gpt", True)), r"is no text: turn 2 \('gpt'\) holds a bool"),
        (turns(("human", "<image> <image> which?"), ("gpt", "a")), "more than one <image>"),
        (messages(("user", [PICTURE, PICTURE, ASKED]), ("assistant", "a")), "more than one <image>"),
        (messages(("user", [PICTURE, "<image>", ASKED]), ("assistant", "a")), "more than one <image>"),
        (messages(("user", [ASKED]), ("assistant", [PICTURE])), r"a picture in an answer: turn 2 \('assistant'\)"),
        (messages(("user", [ASKED, {"type": "video"}])), r"neither text nor image: turn 1 \('user'\) has 'video'"),
    ],
)
def test_what_cannot_be_told_is_damage(told, reason):
    with pytest.raises(DamagedSampleError, match=reason):
        conversation_pairs(told)


def test_the_pictures_that_parts_name_are_found_and_taken_out():
    told = messages(
        ("user", [ASKED, PICTURE, {"type": "image", "image": "b.png"}, {"type": "image"}]), ("assistant", "a")
    )
    assert image_sources(told) == [{"url": "a.png"}, "b.png"]
    bare = without_sources([*told, "?"])
    assert bare[0]["content"] == [ASKED, *[{"type": "image"}] * 3] and bare[1:] == [told[1], "?"]
    assert image_sources(bare) == image_sources("no list") == image_sources([3, {"content": [3]}]) == []
