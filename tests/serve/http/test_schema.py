"""Conversations as clients send them, converted to the template's turns; invalid ones are rejected with their path."""

import pytest

from serve.http.errors import ApiError
from serve.http.forms.base import MAX_PROMPT
from serve.http.forms.bodies import to_form
from serve.http.forms.chat import ChatBody
from serve.http.forms.conversations import MAX_TOKENS
from serve.http.forms.messages import Picture
from tests.serve.client import question

IMAGE = {"type": "image_url", "image_url": {"url": "data:,x"}}
USER = {"role": "user", "content": "hi"}


def read(*messages, **options):
    return to_form({"messages": list(messages), **options}, ChatBody)


def turns(*messages):
    return [(turn.role, turn.text) for turn in read(*messages).turns]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("hi", "hi"),
        ("", ""),
        ([], ""),
        ([{"type": "text", "text": "hi"}], "hi"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        ([IMAGE, {"type": "text", "text": "what?"}], "what?"),
        ([{"type": "text", "text": "{saying} %s \x00\u202e"}], "{saying} %s \x00\u202e"),
    ],
)
def test_content_is_a_string_or_a_list(content, text):
    assert turns({"role": "user", "content": content}) == [("user", text)]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"content": None}, ""),
        ({}, ""),
        ({"content": None, "refusal": "I cannot."}, "I cannot."),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "No."),
        ({"content": "Red.", "refusal": None, "tool_calls": None, "function_call": None, "audio": None}, "Red."),
        ({"content": "Red.", "annotations": [], "tool_calls": [], "reasoning_content": "Hm."}, "Red."),
    ],
)
def test_an_assistants_turn_may_have_no_content(answer, text):
    assert turns(USER, {"role": "assistant", **answer}, USER)[1] == ("assistant", text)


def test_system_messages_at_the_head_are_one_turn():
    system, developer = {"role": "system", "content": "A."}, {"role": "developer", "content": "B."}
    assert turns(system, USER) == [("system", "A."), ("user", "hi")]
    assert turns(developer, USER) == [("system", "B."), ("user", "hi")]
    assert turns(system, developer, USER) == [("system", "A.\n\nB."), ("user", "hi")]
    assert turns(USER, system) == [("user", "hi"), ("system", "A.")]
    assert turns({"role": "system", "content": ""}, USER) == [("system", ""), ("user", "hi")]


@pytest.mark.parametrize(
    ("messages", "param", "said"),
    [
        ([], "messages", "at least 1"),
        ([{"role": "system", "content": "x"}], "messages", "no user message to answer"),
        ([USER, {"role": "assistant", "content": "x"}], "messages.1.role", "the last message must be the user's"),
        ([USER, {"role": "tool", "content": "x"}], "messages.1.role", "this model calls none"),
        ([USER, {"role": "function", "name": "f", "content": "x"}], "messages.1.role", "this model calls none"),
        ([{"role": "User", "content": "x"}], "messages.0.role", 'not "User"'),
        ([USER, {"role": "assistant", "tool_calls": [{}]}, USER], "messages.1.tool_calls", "not honoured"),
        ([{"role": "user", "content": 3}], "messages.0.content", "a string or a list of parts"),
        ([{"role": "user", "content": {"type": "text", "text": "x"}}], "messages.0.content", "a list of parts"),
        ([{"role": "user", "content": ["x"]}], "messages.0.content.0", 'must be an object, not "x"'),
        ([{"role": "user", "content": [{"text": "x"}]}], "messages.0.content.0.type", "is required"),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}],
            "messages.0.content.0.type",
            "input_text",
        ),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages.0.content.0.image_url", "is required"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x", "detail": "ultra"}}]}],
            "messages.0.content.0.image_url.detail",
            'not "ultra"',
        ),
        (question("x", 3), "messages.0.content.0.image_url.url", "must be a string, not 3"),
        ([{"role": "system", "content": [IMAGE]}, USER], "messages.0.content.0", "message of the system"),
        ([USER, {"role": "assistant", "content": [IMAGE]}, USER], "messages.1.content.0", "message of the assistant"),
        ([{"role": "user", "content": [IMAGE, IMAGE]}], "messages.0.content.1", "a second image"),
        ([USER, {"role": "user", "content": [IMAGE]}], "messages.1.content.0", "first message, messages.0"),
    ],
)
def test_what_cannot_be_answered_is_named(messages, param, said):
    with pytest.raises(ApiError) as caught:
        read(*messages)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert said in caught.value.message


def test_a_long_conversation_is_counted():
    with pytest.raises(ApiError) as caught:
        read(*[{"role": "user", "content": "x" * MAX_PROMPT}] * 2)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "messages"
    assert "64000 characters, at most 32000" in caught.value.message


def test_the_image_is_found_after_a_system_message():
    body = read({"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "?"}, IMAGE]})
    assert body.pictures == (Picture(path="messages.1.content.1.image_url.url", url="data:,x"),)


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 64),
        ({"max_tokens": 3}, 3),
        ({"max_tokens": 16.0}, 16),
        ({"max_tokens": 100_000}, MAX_TOKENS),
        ({"max_completion_tokens": 10**30}, MAX_TOKENS),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_tokens": None}, 64),
    ],
)
def test_a_token_limit_is_capped_at_what_fits(options, limit):
    assert read(USER, **options).token_limit == limit


@pytest.mark.parametrize("value", [0, -1, 1.5, "16", True, []])
def test_a_limit_that_is_none_is_refused(value):
    with pytest.raises(ApiError) as caught:
        read(USER, max_tokens=value)
    assert caught.value.param == "max_tokens"
