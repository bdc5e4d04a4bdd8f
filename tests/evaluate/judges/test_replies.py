"""Replies of models: reasoning is never read, an end that is none is a fault, and no reader says what is not there."""

import random

import pytest

from blip3o.evaluate.judges.replies import Reply, answer, content_text, ending, read_completion
from blip3o.evaluate.suites.dpg import read_answer
from blip3o.evaluate.suites.edits import gedit_grades, imgedit_grades
from blip3o.evaluate.suites.questions.choice import chosen
from blip3o.evaluate.suites.wise.grades import read_grades
from blip3o.evaluate.suites.wise.suite import WISE, WISE_VERIFIED

HARMONY = (
    "<|channel|>analysis<|message|>Score: 0?<|end|><|start|>assistant<|channel|>final<|message|>Score: 1<|return|>"
)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Score: 1", "Score: 1"),
        (" a < b, think > c \n", " a < b, think > c \n"),  # as it is
        ("<think>\nScore: 0</think>Score: 1", "Score: 1"),
        ("<think></think>Score: 1", "Score: 1"),
        ("<think/>Score: 1", "Score: 1"),
        ("Score: 0 would be odd.\n</think>Score: 1", "Score: 1"),
        ("Score: 0?<think>hm</think>Score: 1", "Score: 1"),
        ("<think>a <think>b</think> Score: 0</think>Score: 1", "Score: 1"),
        ("<think>a</think>Score: 0<think>b</think>Score: 1", "Score: 1"),
        ("<THINKING>Score: 0</THINKING>Score: 1", "Score: 1"),
        ("<reasoning effort='low'>Score: 0</reasoning>Score: 1", "Score: 1"),
        ("Score: 1<reasoning>Score: 0</reasoning>", "Score: 1"),  # a section of a format, before or after
        ("<thought>Score: 0</thought>Score: 1", "Score: 1"),
        ("<seed:think>Score: 0</seed:think>Score: 1", "Score: 1"),
        ("&lt;think&gt;Score: 0&lt;/think&gt;Score: 1", "Score: 1"),
        ("◁think▷Score: 0◁/think▷Score: 1", "Score: 1"),
        ("[THINK]Score: 0[/THINK]Score: 1", "Score: 1"),
        ("<|begin_of_thought|>Score: 0<|end_of_thought|>Score: 1", "Score: 1"),
        ("<|START_THINKING|>0<|END_THINKING|><|START_RESPONSE|>Score: 1<|END_RESPONSE|>", "Score: 1"),
        ('<details type="reasoning" done="true">Score: 0</details>Score: 1', "Score: 1"),
        ("<unused94>thought\nScore: 0<unused95>Score: 1", "Score: 1"),
        ("<|channel>thought\nScore: 0<channel|>Score: 1", "Score: 1"),
        ("Here is my thought process: Score: 0 Here is my response:Score: 1", "Score: 1"),
        (HARMONY, "Score: 1"),
        ("<|channel|>final <|constrain|>JSON<|message|>Score: 1", "Score: 1"),
        ("analysisWe need Score: 0 or 1.assistantfinalScore: 1", "Score: 1"),
        ("analysis: Score: 1", "analysis: Score: 1"),
        ("<answer>Score: 1</answer>", "Score: 1"),
        ("Score: \\boxed{1}", "Score: 1"),
        ("Score: $\\boxed{\\text{1}}$<|im_end|>", "Score: 1"),
        ("<think>Score: 0", None),
        ("Score: 1\n<think>Score: 0", None),
        ("<think>a</think>Score: 1<think>", None),
        ("◁think▷Score: 0", None),
        ("[THINK]Score: 0", None),
        ("<reasoning>Score: 0", None),
        ("<|channel|>analysis<|message|>Score: 0", None),
        ("analysisThe leaf would be Score: 0", None),
        ("Here is my thought process: Score: 0", None),
        ("<think>Score: 0</think>", ""),
    ],
)
def test_reasoning_is_no_part_of_an_answer(text, read):
    assert answer(text) == read


@pytest.mark.parametrize(
    ("end", "reasons"),
    [
        (
            "done",
            "stop STOP eos eos_token end_turn stop_sequence FINISH_REASON_STOP COMPLETE <|im_end|> </s>".split() + [""],
        ),
        ("truncated", "length max_tokens MAX_TOKENS model_length max_output_tokens FINISH_REASON_MAX_TOKENS".split()),
        (
            "refused",
            "content_filter SAFETY refusal RECITATION sensitive PROHIBITED_CONTENT content_filter:OTHER".split(),
        ),
        ("broken", "error abort insufficient_system_resource network_error cancelled timeout".split()),
        ("unknown", "tool_calls function_call".split()),
    ],
)
def test_the_end_of_a_reply_by_every_server_s_name(end, reasons):
    assert {ending(reason) for reason in reasons} == {end}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a", "a"),
        (None, ""),
        ([{"type": "text", "text": "Score"}, {"type": "text", "text": ": 1"}], "Score: 1"),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "Score: 0"}]}, {"type": "text", "text": "1"}],
            "1",
        ),
        ([{"type": "reasoning", "text": "Score: 0"}, {"type": "output_text", "text": "1"}], "1"),
        (["1"], "1"),
        ("cut within a letter \ud83d", "cut within a letter ?"),
        ({"type": "text", "text": {"value": "1"}}, "1"),
        ([], ""),
        ([7, None, {"type": "text"}], ""),
        (7, None),
    ],
)
def test_content_is_a_text_or_its_parts(content, text):
    assert content_text(content) == text


def read(limit=512, body=None, **choice):
    return read_completion({"choices": [choice], **(body or {})}, limit=limit)


def test_reasoning_beside_the_content_is_ignored():
    message = {"content": "Score: 1", "reasoning_content": "Score: 0", "reasoning": "Score: 0", "refusal": None}
    assert read(message=message, finish_reason="stop") == Reply(text="Score: 1", verbatim="Score: 1")
    message |= {"content": None}
    assert read(message=message, finish_reason="stop") == Reply()


def test_any_name_of_an_end_that_is_none_leaves_no_answer():
    message = {"content": "Score: 0"}
    assert read(message=message, finish_reason="stop", native_finish_reason="MAX_TOKENS").truncated
    assert read(message=message, finish_reason=None, stop_reason="max_tokens").truncated
    assert read(message=message, finish_reason="stop", stop_reason=151645).text == "Score: 0"
    assert read(message=message, finish_reason="stop", stop_reason="###").text == "Score: 0"  # vLLM: the stop text
    assert read(message=message, finish_reason="stop", native_finish_reason="stop_str").text == "Score: 0"
    assert "'###' is not known" in read(message=message, stop_reason="###").fault
    assert read(message=message, finish_reason="stop", native_finish_reason="SAFETY").refused
    assert "'tool_calls' is not known" in read(message=message, finish_reason="tool_calls").fault
    assert read(message={"content": "<think>Score: 0"}, finish_reason="stop").fault == "ends within its reasoning"


READERS = {
    "wise": lambda text: read_grades(text, WISE.grades, highest=2)[0],
    "wise-verified": lambda text: read_grades(text, WISE_VERIFIED.grades, highest=1)[0],
    "choice": lambda text: chosen(text, ["a cat", "a dog", "a cow"]),
    "dpg": read_answer,
    "imgedit": lambda text: imgedit_grades(text)[0],
    "gedit": lambda text: gedit_grades(text)[0],
}
RANGES = {"wise": range(3), "wise-verified": range(2), "choice": range(3), "imgedit": range(1, 6)}
PIECES = (
    """
Score Consistency Realism Aesthetic Quality score answer option The is of : : : 0 1 2 3 5 10 1.5 2.0 -1 /2 /10 01 ½ ²
２ ** ` ( ) [ ] { } , , . " ' A B C a b cat dog cow yes no Yes. or and not
{"score": [7, 8]} "score" \\boxed{ } <answer> NaN
1e999 null true <think> </think> <thinking> [THINK] ◁think▷ <|channel|> final <|message|> ||V^=^V|| ``` json
<details
""".split()
    + ["\n", "\n\n", " ", "\u2028", "\x00", "scale of 0 to 2", "(0-2)", "answer is", "\ud800"]
)


def sayings(seed, count):
    """Replies put together at random of what judges write."""
    chance = random.Random(seed)
    for _ in range(count):
        glue = chance.choice(["", " ", " ", "\n"])
        yield glue.join(chance.choices(PIECES, k=chance.randint(1, 12)))


def values(found):
    if isinstance(found, dict):
        return list(found.values())
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("name", READERS)
def test_no_reader_fails_or_leaves_its_range_and_a_thought_never_decides(name):
    reader = READERS[name]
    for text in sayings(name, 1500):
        found = reader(text)
        if found is not None and name == "gedit":
            assert 1 <= len(found) <= 2 and all(0 <= grade <= 10 for grade in found), repr(text)
        elif found is not None and name != "dpg":
            assert all(type(value) is int and value in RANGES[name] for value in values(found)), repr(text)
        for thought in ("Score: 0", text, "{} A yes 7"):
            assert reader(f"<think>{thought}</think>{text}") == found or "channel" in text, repr(text)
        assert reader(f"{text}<think>Score: 1") is None or "channel" in text, repr(text)


LONG = [
    "{",
    "<think>",
    "[[",
    "Score: ",
    "A or ",
    '{"score":',
    "answer is ",
    "1 ",
    "(",
    "*",
    " ",
    "0",
    '"',
    "a:",
    "1 to ",
    "<reason>",
]


@pytest.mark.parametrize("name", READERS)
def test_long_replies_are_read_as_well(name):
    for piece in LONG:
        assert READERS[name](piece * (8000 // len(piece))) is None, piece
    found = READERS[name](f"Score: {'1' * 5000}\nA: {'1' * 5000}\nB: 1\nC: 1")
    assert found is None


@pytest.mark.parametrize("seed", range(3))
def test_a_completion_of_any_shape_is_a_reply_or_none(seed):
    chance = random.Random(seed)
    leaves = [None, True, 7, 1.5, "", "stop", "length", "Score: 0", "content_filter"]

    def shape(depth):
        if depth == 0 or chance.random() < 0.3:
            return chance.choice(leaves)
        if chance.random() < 0.4:
            return [shape(depth - 1) for _ in range(chance.randint(0, 2))]
        names = (
            "choices message content text type refusal finish_reason stop_reason usage completion_tokens error".split()
        )
        return {name: shape(depth - 1) for name in chance.sample(names, chance.randint(0, 6))}

    for _ in range(1000):
        reply = read_completion({"choices": [shape(4)], "usage": shape(2)}, limit=5)
        assert reply is None or not (reply.fault and reply.text)
        assert reply is None or bool(reply.fault) >= (reply.truncated or reply.refused or reply.broken)
