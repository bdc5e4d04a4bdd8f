"""Requests as clients and frameworks send them, each over HTTP to a server of a nano bundle."""

import json
from pathlib import Path

import pytest

from blip3o.bundle.reading import load_bundle
from tests.bundles import write_nano_bundle
from tests.serve.client import assert_refusal, question, raw, serving

CASES = [json.loads(line) for line in (Path(__file__).parent / "server" / "requests.jsonl").read_text().splitlines()]
CHAT = "/v1/chat/completions"
PLAIN = {"messages": question("What colour?"), "max_tokens": 4}
TURNED = ("picture with text tag as a rational", "picture with a resolution of -1/0")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("field") / "bundle")
    write_nano_bundle(uri)
    return load_bundle(uri)


@pytest.fixture(scope="module")
def server(pipeline):
    with serving(pipeline) as server:
        yield server


def said(answer):
    """What a reply says, without its id and time."""
    assert answer.status == 200, answer
    reply = answer.json
    return reply["choices"][0]["message"]["content"] if "choices" in reply else reply["data"]


def wanted(case):
    """The request that must get the same answer, or None."""
    path, body = case["path"], case["body"]
    if path != CHAT:
        return {"prompt": body["prompt"], "seed": 3}
    if case["what"].startswith("data URL"):
        plain = "".join(body["messages"][0]["content"][1]["image_url"]["url"].split())
        return {"messages": question("What is it?", plain.replace("DATA:", "data:").replace("BASE64", "base64"))}
    return PLAIN if "without the field" in case["right"] else None


def test_the_rights_are_those_that_are_tested_here():
    assert {case["right"].split(",")[0].split()[0] for case in CASES} == {"200", "400", "one"}
    assert {case["what"] for case in CASES} >= {*TURNED}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["right"].startswith("200")], ids=lambda case: case["what"]
)
def test_what_is_right_is_answered(server, case):
    body = case["body"] if case["path"] == CHAT else {**case["body"], "seed": 3}
    answer = said(raw("POST", server.url + case["path"], body))
    if case["what"] in TURNED:
        [shown] = server.seen[-1].images
        (above, _, _), (_, _, below) = (shown.getpixel((shown.width // 2, y)) for y in (4, shown.height - 5))
        assert above > 200 and below > 200  # red above blue
    elif (plain := wanted(case)) is not None:
        same = plain if case["path"] != CHAT else {**plain, "max_tokens": 4}
        assert answer == said(raw("POST", server.url + case["path"], same))


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["right"].startswith("400")], ids=lambda case: case["what"]
)
def test_what_is_wrong_is_refused(server, case):
    answer = raw("POST", server.url + case["path"], case["body"])
    if "frequency_penalty" in case["body"]:
        assert_refusal(answer, 400, code="unknown_parameter", param="frequency_penalty")
    else:
        assert_refusal(answer, 400, code="invalid_value", param="messages.0.content.1.image_url")
        assert "image_url must be an object with url" in answer.json["error"]["message"]


def test_a_clients_system_message_replaces_the_default_one(server, pipeline):
    [case] = [case for case in CASES if case["right"].startswith("one")]
    counts = [raw("POST", server.url + CHAT, body).json["usage"]["prompt_tokens"] for body in (case["body"], PLAIN)]
    theirs, ours = case["body"]["messages"][0]["content"], pipeline.template.system
    encode = pipeline.tokenizer.encode
    assert counts[0] - counts[1] == len(encode(theirs)) - len(encode(ours))


@pytest.mark.parametrize("sent", ["application/x-www-form-urlencoded", "text/plain;charset=UTF-8", None])
def test_a_post_without_the_json_header_is_answered_with_the_header_to_send(server, sent):
    answer = raw("POST", server.url + CHAT, PLAIN, {"content-type": sent} if sent else {})
    assert_refusal(answer, 400, code="unsupported_content_type")
    message = answer.json["error"]["message"]
    assert "send the header 'Content-Type: application/json'" in message
    assert (sent or "the Content-Type header is missing") in message
