"""Bytes and headers of a request: anything but JSON is rejected with OpenAI's error body; and the fuzz test."""

import base64
import json

import pytest
from pydantic import ValidationError

from serve.http.errors import ApiError
from serve.http.forms.bodies import parse_json, to_form
from serve.http.forms.chat import ChatBody
from serve.http.forms.images import ImagesBody
from serve.http.forms.responses import ResponsesBody
from tests.serve.client import assert_refusal, question, raw, serving
from tests.serve.request_fuzz import PICTURES, Requests, fuzz, has_place

CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
TALK = {"messages": question("What colour?"), "max_tokens": 1}


@pytest.fixture(scope="module")
def server(reference):
    with serving(reference) as server:
        yield server


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the body is empty"),
        (b" \n", "the body is empty"),
        (b"{", "line 1, column 2"),
        (b'{"n": 1,\n "prompt" "x"}', "line 2, column 11"),
        (b'{"n": 1} x', "line 1, column 10"),
        (b"{'n': 1}", "line 1, column 2"),
        (b"prompt=x&n=1", "line 1, column 1"),
        (b'{"n": NaN}', "NaN is not a JSON value"),
        (b'{"n": -Infinity}', "-Infinity is not a JSON value"),
        (b'{"a": {"n": 1, "n": 2}}', "the name 'n' twice"),
        (b'{"prompt": "caf\xe9"}', "not UTF-8 (byte 0xe9 at position 15)"),
        (b"[" * 40_000, "nested too deeply"),
        (b'{"n": ' + b"1" * 5000 + b"}", "thousands of digits"),
        (b"\x1f\x8b\x08\x00\x00", "not UTF-8"),
        (b"[" + b",".join([b"{}"] * 50_000) + b"]", "50001 brackets"),
        (json.dumps({str(number): 1 for number in range(1001)}).encode(), "1001 names"),
    ],
)
def test_invalid_json_is_reported_with_its_position(data, said):
    with pytest.raises(ApiError) as caught:
        parse_json(data)
    assert caught.value.status == 400 and said in caught.value.message
    assert "\n" not in caught.value.message and caught.value.param is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_json_may_have_a_byte_order_mark(encoding):
    assert parse_json('{"prompt": "café"}'.encode(encoding)) == {"prompt": "café"}


@pytest.mark.parametrize(
    ("form", "value", "said", "param"),
    [
        (ChatBody, [], "the body must be an object, not a list", None),
        (ChatBody, None, "the body must be an object, not null", None),
        (ImagesBody, {"prompt": 3}, "must be a string, not 3", "prompt"),
        (ImagesBody, {"prompt": None}, "is null, and it is required", "prompt"),
        (ImagesBody, {"prompt": "x", "n": "2"}, 'must be a whole number, not "2"', "n"),
        (ImagesBody, {"prompt": "x", "n": True}, "must be a whole number, not true", "n"),
        (ImagesBody, {"prompt": "x", "n": 1.5}, "must be a whole number, not 1.5", "n"),
        (ImagesBody, {"prompt": "x", "stream": "false"}, 'must be true or false, not "false"', "stream"),
        (ImagesBody, {"prompt": "x", "guidance_scale": float("inf")}, "finite", "guidance_scale"),
        (ImagesBody, {"prompt": "x", "quality": "4k"}, 'not "4k"', "quality"),
        (ChatBody, {"messages": "hi"}, 'must be a list, not "hi"', "messages"),
        (ChatBody, {"messages": ["hi"]}, 'must be an object, not "hi"', "messages.0"),
        (ChatBody, {"messages": [{"content": "hi"}]}, "is required", "messages.0.role"),
        (ChatBody, {"messages": [{"role": "user", "content": None}]}, "is null, and it is", "messages.0.content"),
        (ChatBody, {"messages": [{"role": "user"}]}, "is required", "messages.0.content"),
        (ChatBody, TALK | {"stream_options": {"x": 1}}, "unknown", "stream_options.x"),
        (ChatBody, TALK | {"x" * 9000: 1}, "unknown", "x" * 9000),
    ],
)
def test_a_fault_names_its_path_and_value(form, value, said, param):
    with pytest.raises(ApiError) as caught:
        to_form(value, form)
    assert said in caught.value.message and len(caught.value.message) < 400
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("form", "value"),
    [
        *((ChatBody, TALK | {name: [0] * 1000}) for name in ("messages", "modalities", "stop")),
        (ChatBody, {"messages": [{"role": "user", "content": [0] * 1000}]}),
        *((ResponsesBody, {"input": "x", name: [0] * 1000}) for name in ("input", "tools")),
        (ResponsesBody, {"input": [{"role": "user", "content": [0] * 1000}]}),
    ],
)
def test_a_list_is_checked_up_to_its_first_fault(form, value):
    with pytest.raises(ValidationError) as caught:
        form.model_validate(value)
    assert caught.value.error_count() <= 2  # pydantic looks at one more


@pytest.mark.parametrize(
    ("headers", "status", "said"),
    [
        ({}, 400, "the Content-Type header is missing"),
        ({"content-type": "application/x-www-form-urlencoded"}, 400, "is 'application/x-www-form-urlencoded'"),
        ({"content-type": "multipart/form-data; boundary=x"}, 400, "send the header 'Content-Type: application/json'"),
        ({"content-type": "text/json"}, 400, "send the header"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415, "Content-Encoding 'gzip' is not read"),
        ({"content-type": "application/json", "content-encoding": "br, gzip"}, 415, "'br, gzip'"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, IMAGES])
def test_headers_that_cannot_be_are_named(server, path, headers, status, said):
    answer = raw("POST", server.url + path, TALK, headers)
    assert_refusal(answer, status, code="unsupported_content_type" if status == 400 else None)
    assert said in answer.json["error"]["message"]


@pytest.mark.parametrize(
    "sent",
    [
        {"content-type": "application/json; charset=utf-8"},
        {"content-type": "Application/JSON"},
        {"content-type": "application/vnd.api+json"},
        {"content-type": "application/json", "content-encoding": "identity"},
    ],
)
def test_json_by_any_of_its_names_is_read(server, sent):
    assert raw("POST", server.url + CHAT, TALK, sent).status == 200


def test_heads_slashes_and_routes_that_are_not_there(server):
    for path in ("/health", "/v1/models", "/v1/models/nano", "/"):
        for asked in (path, path.rstrip("/") + "/"):
            head = raw("HEAD", server.url + asked)
            assert (head.status, head.text) == (200, "")
            assert raw("GET", server.url + asked).status == 200
    assert raw("GET", server.url + "/v1/models/").json["data"][0]["id"] == "nano"
    assert raw("POST", server.url + CHAT + "/", TALK).status == 200
    answer = raw("POST", server.url + "/chat/completions", TALK)
    assert_refusal(answer, 404)
    assert "POST /chat/completions" in answer.json["error"]["message"]
    assert CHAT in answer.json["error"]["message"]
    answer = raw("OPTIONS", server.url + CHAT)
    assert_refusal(answer, 405)
    assert answer.headers["allow"] == "POST" and "this route takes POST" in answer.json["error"]["message"]


@pytest.mark.parametrize("name", ["tools", "user", "messages", "seed", "response_format", "anything"])
def test_nesting_at_the_limit_is_not_a_server_error(server, name):
    for depth in (*range(300, 1000, 40), 5_000):
        nested = b"[" * depth + b"]" * depth
        body = json.dumps(TALK).encode()[:-1] + b', "' + name.encode() + b'": ' + nested + b"}"
        assert raw("POST", server.url + CHAT, body).status in (200, 400)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_request_gets_a_500_or_an_error_about_a_field_it_does_not_have(server, monkeypatch, seed):
    monkeypatch.setattr("serve.http.forms.chat.MAX_TOKENS", 4)  # long replies are not the point
    counts = fuzz(server.port, seed=seed, requests=250)
    assert counts[200] > 20 and counts[400] > 100


def test_pictures_of_all_kinds_are_read_or_refused(server):
    """Also those that unpack to far more than they are, move, or have other colours and depths."""
    statuses = [raw("POST", server.url + CHAT, asking(picture)).status for picture in PICTURES]
    assert set(statuses) == {200, 400} and statuses.count(200) > len(PICTURES) // 2


def asking(picture):
    return {"messages": question("?", "data:;base64," + base64.b64encode(picture).decode()), "max_tokens": 1}


def test_the_fuzz_is_a_function_of_its_seed_and_knows_a_bad_place():
    first, again = (next(Requests(7)) for _ in range(2))
    assert first == again
    assert [next(Requests(seed)) for seed in range(3)] != [next(Requests(seed)) for seed in range(3, 6)]
    value = json.loads('{"messages": [{"content": [{"image_url": "x"}]}], "a.b": {"c": 1}}')
    assert has_place(value, "messages.0.content.0.image_url", missing=False)
    assert has_place(value, "a.b.c", missing=False)
    assert has_place(value, "messages.0.role", missing=True)
    for place in (
        "messages.0.content.0.image_url.image_url",
        "messages.0.role",
        "messages.1",
        "messages.0.content.text",
    ):
        assert not has_place(value, place, missing=False)
