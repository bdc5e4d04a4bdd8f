"""The judge's client against a small real server: what it sends, what it waits out, and what it gives up on."""

import base64
from concurrent.futures import ThreadPoolExecutor

import pytest

from blip3o.errors import ConfigError, ServiceError
from blip3o.evaluate.judges.client import DOUBTS, JudgeClient
from blip3o.evaluate.judges.options import JudgeOptions, parse_options
from blip3o.evaluate.judges.replies import REFUSED
from blip3o.evaluate.records import Item, Judge
from blip3o.evaluate.suites.wise.suite import WISE
from tests.evaluate.endpoint import Answer, Stopped, completion, error, serving

FINE = completion("fine")


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


def client(server, *options, **more):
    more = {"options": parse_options(options), "clock": Stopped(), "model": "eye", "prompt_version": "1"} | more
    return JudgeClient(base_url=server.url, **more)


def test_it_sends_images_then_text_and_asks_for_no_variation(server, monkeypatch):
    monkeypatch.setenv("BLIP3O_JUDGE_API_KEY", "secret\n")
    judge = client(server.script(completion(" Score: 1\n")))
    assert judge.ask("grade it", [b"png-1", b"png-2"]).text == " Score: 1\n"
    [(path, headers, body)] = server.received
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret")
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("eye", 0, 512)
    *images, text = body["messages"][0]["content"]
    assert [part["image_url"]["url"] for part in images] == [
        f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in (b"png-1", b"png-2")
    ]
    assert text == {"type": "text", "text": "grade it"}
    assert judge.judge == Judge(id="eye", version="1")


PASSING = {
    "503": error(503, "loading"),
    "529": error(529, "overloaded"),
    "524": Answer(status=524, body=b"<html>timed out</html>"),
    "408": Answer(status=408),
    "425": Answer(status=425),
    "a hang-up": Answer(status=None),
    "a 200 with a limit": Answer(body={"choices": None, "error": {"message": "Provider returned error", "code": 429}}),
    "a 200 with a type": Answer(body={"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
    "an error in the choice": Answer(
        body={"choices": [{"error": {"code": 502, "message": "bad gateway"}, "message": {"content": "Score: 0"}}]}
    ),
    "an empty body": Answer(),
    "a page": Answer(body=b"<html>upstream connect error</html>"),
    "half a body": Answer(body=FINE.body, cut=20),
    "half of the JSON": Answer(body=b'{"choices": [{"mess'),
    "no choices": Answer(body={"choices": []}),
    "broken off": completion("Score: 0", "insufficient_system_resource"),
    "an error's reason": completion("Score: 0", "error"),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_may_pass_is_asked_again_whichever_layer_says_it(server, fault):
    judge = client(server.script(fault, fault, FINE))
    assert judge.ask("x", []).text == "fine"
    assert len(server.received) == 3 and judge.clock.waits == [1.0, 2.0]


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "5"}, 5),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "Fri, 15 Jan 2027 08:00:07 GMT"}, 7),
        ({"Retry-After": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0.1),  # past
        ({"retry-after-ms": "250", "Retry-After": "1"}, 0.25),
        (
            {
                "x-ratelimit-reset-requests": "6m0s",
                "x-ratelimit-remaining-requests": "3",
                "x-ratelimit-reset-tokens": "2s",
            },
            2,
        ),
        ({"x-ratelimit-reset-requests": "250ms", "x-ratelimit-reset-tokens": "7.66s"}, 7.66),
        ({"X-RateLimit-Reset": "1800000009000"}, 9),
        ({"anthropic-ratelimit-requests-reset": "2027-01-15T08:00:11Z"}, 11),
        ({"Retry-After": "soon"}, 1),
        ({"Retry-After": "-3"}, 1),
        ({}, 1),
    ],
)
def test_it_waits_as_long_as_it_is_told(server, headers, wait):
    judge = client(server.script(error(429, "slow down", headers), FINE))
    assert judge.ask("x", []).text == "fine"
    assert judge.clock.waits == [pytest.approx(wait)]


@pytest.mark.parametrize(
    ("message", "wait"),
    [("Please try again in 1.32s.", 1.32), ("try again in 20ms", 0.1), ("Try again in 5 seconds.", 5), ("later", 1)],
)
def test_a_wait_may_stand_in_the_text(server, message, wait):
    judge = client(server.script(error(429, message), FINE))
    assert judge.ask("x", []).text == "fine"
    assert judge.clock.waits == [pytest.approx(wait)]


def test_patience_ends_and_is_an_option(server):
    judge = client(server.script(error(503, "loading")))
    with pytest.raises(
        ServiceError, match="failed 6 times in 31 s of waiting .HTTP 503: loading.: .*judge again to resume"
    ):
        judge.ask("x", [])
    assert judge.clock.waits == [1, 2, 4, 8, 16]
    with pytest.raises(ServiceError):
        judge.ask("y", [])
    assert len(server.received) == 6, "it asked on although it had given up"
    longer = client(server.script(error(429, "slow down", {"Retry-After": "300"}), FINE), "patience=300")
    assert longer.ask("x", []).text == "fine" and longer.judge.version == "1"
    told = client(server.script(error(429, "slow down", {"Retry-After": "301"})), "patience=300")
    with pytest.raises(ServiceError, match="asks to wait 301 s.*raise --judge-option patience=300"):
        told.ask("x", [])
    assert told.clock.waits == []


def test_an_endpoint_that_is_not_there_is_named_soon():
    with serving() as gone:
        judge = client(gone)
    with pytest.raises(ServiceError, match="failed 3 times .*judge again to resume"):
        judge.ask("x", [])


EVERYTHING = {
    "no key": (error(401, "no such key"), "HTTP 401: no such key.*BLIP3O_JUDGE_API_KEY"),
    "not allowed": (error(403, "no access"), "check what the key"),
    "no model": (error(404, "model 'eye' does not exist"), "check the address .* and the model's name"),
    "no model, as a 400": (error(400, "bad", code="model_not_found"), "check the address, the model's name"),
    "a firewall": (Answer(status=403, body=b"<html>you have been blocked</html>"), "HTTP 403"),
    "no balance": (error(402, "Insufficient credits"), "settle the account"),
    "no quota": (error(429, "You exceeded your current quota", code="insufficient_quota"), "waiting does not help"),
    "no credit": (error(400, "Your credit balance is too low", type="invalid_request_error"), "balance"),
    "a key within a 200": (Answer(body={"error": {"code": 401, "message": "no key"}}), "BLIP3O_JUDGE_API_KEY"),
    "temperature": (error(400, "'temperature' does not support 0 with this model"), "--judge-option temperature=none"),
    "temperature later": (error(400, "`temperature` is deprecated for this model."), "temperature=none"),
}


@pytest.mark.parametrize(("fault", "message"), EVERYTHING.values(), ids=EVERYTHING)
def test_a_refusal_of_everything_stops_at_once_with_its_fix(server, fault, message):
    judge = client(server.script(fault))
    with pytest.raises(ConfigError, match=message) as raised:
        judge.ask("x", [])
    assert len(server.received) == 1 and judge.clock.waits == [] and "\n" not in str(raised.value)


def test_a_limit_by_the_minute_is_no_lack_of_quota(server):
    body = [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "You exceeded your current quota"}}]
    body[0]["error"]["details"] = [{"@type": "RetryInfo", "retryDelay": "34.07s"}]
    judge = client(server.script(Answer(status=429, body=body), FINE))
    assert judge.ask("x", []).text == "fine" and judge.clock.waits == [34.07]


CONTENT = {
    "a code": error(400, "The response was filtered", code="content_filter"),
    "an inner code": error(400, "bad", code=None, innererror={"code": "ResponsibleAIPolicyViolation"}),
    "a policy": error(400, "Your request was rejected by our safety system", code="content_policy_violation"),
    "moderation": error(403, 'Your input was flagged for "violence"', code=403, metadata={"reasons": ["violence"]}),
    "inspection": Answer(status=400, body={"code": "DataInspectionFailed", "message": "inappropriate content"}),
    "words": error(400, "Output blocked by content filtering policy", type="invalid_request_error"),
    "within a 200": Answer(body={"error": {"message": "flagged", "code": "content_policy_violation"}}),
    "quoted": error(400, "Provider returned error", metadata={"raw": '{"error": {"code": "content_filter"}}'}),
    "no candidates": Answer(body={"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}),
    "legal": Answer(status=451, body=b"unavailable"),
    "a reason": completion("Score: 0", "content_filter"),
    "another reason": completion("Score: 0", "SAFETY"),
    "a native reason": completion("Score: 0", "content_filter: PROHIBITED_CONTENT"),
    "a refusal": completion(None, refusal="I can't help with that."),
    "a refusing part": completion([{"type": "refusal", "refusal": "I can't help with that."}]),
}


@pytest.mark.parametrize("fault", CONTENT.values(), ids=CONTENT)
def test_a_refusal_of_one_content_is_a_fault_of_the_item_and_no_answer(server, fault):
    judge = client(server.script(fault, FINE))
    reply = judge.ask("x", [])
    assert (reply.text, reply.refused, reply.fault.startswith(REFUSED)) == ("", True, True)
    assert judge.ask("y", []).text == "fine" and len(server.received) == 2


def test_another_refusal_is_the_items_once_the_endpoint_has_accepted_one(server):
    large = error(413, "image too large")
    judge = client(server.script(FINE, large, large, large, large, FINE))
    replies = [judge.ask(str(n), []) for n in range(6)]
    assert [reply.text for reply in replies] == ["fine", "", "", "", "", "fine"]
    assert all("HTTP 413: image too large" in reply.fault and not reply.refused for reply in replies[1:5])
    judge.finish()


@pytest.mark.parametrize(
    ("answer", "requests"),
    [
        (Answer(body={"choices": []}), 3),
        (Answer(body={"choices": None, "usage": {}}), 3),
        (completion("Score: 0", "error"), 3),
        (completion(7), 1),
        (Answer(body={}), 1),
    ],
)
def test_completions_without_a_reply_are_the_items_where_others_have_one(server, answer, requests):
    judge = client(server.script(FINE, *[answer] * requests, FINE))
    replies = [judge.ask(str(n), []) for n in range(3)]
    assert [reply.text for reply in replies] == ["fine", "", "fine"] and "no chat completion" in replies[1].fault
    never = client(server.script(answer))
    with pytest.raises(ServiceError, match="no chat completion"):
        never.ask("x", [])


def test_refusals_of_all_that_was_asked_are_a_refusal_of_everything(server):
    judge = client(server.script(error(400, "no images here")))
    assert all(judge.ask("x", []).fault for _ in range(DOUBTS - 1))
    with pytest.raises(ConfigError, match="no images here.*nothing it was asked was accepted"):
        judge.finish()
    with pytest.raises(ConfigError, match="nothing it was asked was accepted"):
        judge.ask("x", [])
    with pytest.raises(ConfigError, match="nothing it was asked was accepted"):
        judge.ask("x", [])
    assert len(server.received) == DOUBTS


def test_many_threads_learn_of_a_refusal_from_one_request(server):
    judge = client(server.script(error(401, "no such key")))

    def asked(number):
        with pytest.raises(ConfigError, match="no such key"):
            judge.ask(str(number), [])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(asked, range(16)))
    assert len(server.received) == 1


def test_a_reply_that_was_cut_is_asked_for_with_more_tokens_and_the_limit_is_kept(server):
    server.script(FINE).answer = lambda body: (
        completion("Score: 1") if body["max_tokens"] >= 2000 else completion("<think>Score: 0", "length")
    )
    judge = client(server)
    assert judge.ask("x", []).text == judge.ask("y", []).text == "Score: 1"
    assert [body["max_tokens"] for body in server.bodies] == [512, 1024, 2048, 2048]


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS", "model_length", "max_output_tokens"])
def test_a_reply_that_is_always_cut_is_a_fault_whatever_it_holds(server, reason):
    judge = client(server.script(completion("Score: 0", reason)), "max_tokens=100", "most_tokens=300")
    reply = judge.ask("x", [])
    assert (reply.text, reply.verbatim, reply.truncated) == ("", "Score: 0", True) and "300 tokens" in reply.fault
    assert [body["max_tokens"] for body in server.bodies] == [100, 200, 300]


def test_an_endpoint_that_takes_no_more_tokens_leaves_the_reply_cut(server):
    server.script(FINE).answer = lambda body: (
        completion("Score: 0", "length") if body["max_tokens"] <= 512 else error(400, "max_tokens is too large: 1024")
    )
    assert client(server).ask("x", []).truncated


def test_a_cut_that_no_reason_names_is_told_by_the_tokens(server):
    body = completion("Score: 0", None).body | {"usage": {"completion_tokens": 64}}
    assert client(server.script(Answer(body=body)), "max_tokens=64", "most_tokens=64").ask("x", []).truncated
    assert client(server.script(Answer(body=body))).ask("x", []).text == "Score: 0"


def test_the_other_name_of_the_token_field_is_used_where_it_alone_is_taken(server):
    unsupported = error(400, "Unsupported parameter: 'max_tokens'", param="max_tokens", code="unsupported_parameter")
    judge = client(server.script(unsupported, FINE))
    assert judge.ask("x", []).text == judge.ask("y", []).text == "fine"
    sent = [{name: value for name, value in body.items() if "tokens" in name} for body in server.bodies]
    assert sent == [{"max_tokens": 512}, {"max_completion_tokens": 512}, {"max_completion_tokens": 512}]
    assert judge.judge.version == "1"
    neither = client(server.script(unsupported))
    with pytest.raises(ConfigError, match="does not take max_tokens"):
        neither.ask("x", [])
    assert len(server.received) == 2


def test_options_are_sent_and_name_the_judge(server):
    options = [
        "max_completion_tokens=64",
        "temperature=none",
        "reasoning_effort=low",
        'chat_template_kwargs={"a": false}',
    ]
    judge = client(server.script(FINE), *options)
    judge.ask("x", [])
    [body] = server.bodies
    assert set(body) == {"model", "messages", "max_completion_tokens", "reasoning_effort", "chat_template_kwargs"}
    assert body["chat_template_kwargs"] == {"a": False} and body["max_completion_tokens"] == 64
    version = 'chat_template_kwargs={"a": false} max_completion_tokens=64 reasoning_effort="low" temperature=null'
    assert judge.judge == Judge(id="eye", version=f"1 {version}")
    server.script(error(400, "Unrecognized request argument supplied: reasoning_effort"))
    with pytest.raises(ConfigError, match="does not take reasoning_effort"):
        client(server, *options).ask("x", [])


@pytest.mark.parametrize("body", [{}, [], {"choices": [{"message": {"content": 7}}]}, {"choices": [7]}, "x", 7, None])
def test_an_answer_of_another_kind_is_an_error(server, body):
    with pytest.raises(ServiceError, match="no chat completion"):
        client(server.script(Answer(body=body))).ask("x", [])


def test_a_key_that_no_header_can_hold_is_one_line(server, monkeypatch):
    monkeypatch.setenv("BLIP3O_JUDGE_API_KEY", "se\ncret")
    with pytest.raises(ConfigError, match="BLIP3O_JUDGE_API_KEY holds characters"):
        client(server.script(FINE)).ask("x", [])


def test_garbage_and_silence_are_counted_and_never_scored(server):
    judge = client(server.script(completion("lovely picture!"), completion(None)))
    items = [Item(key=str(n), prompt="p", record={"Explanation": "e"}, samples=1) for n in (1, 2)]
    found = [WISE.judgement(item, 0, judge.ask(WISE.question(item), [b"png"]).text) for item in items]
    score = WISE.score(items, found, judge.judge)
    assert (score.coverage.n_scored, score.coverage.n_parse_failed, score.overall) == (0, 2, None)
    assert score.categories["culture"] is None
    assert [one.reply for one in found] == ["lovely picture!", ""]


def test_default_options_leave_the_version_as_it_is():
    assert JudgeOptions() == parse_options([]) and parse_options([]).version("v") == "v"
    assert parse_options(["max_tokens=512", "temperature=0", "patience=5", "timeout=9"]).version("v") == "v"
    assert parse_options(["max_tokens=9000"]).version("v") == "v max_tokens=9000"
    assert parse_options(["most_tokens=512"]).version("v") == "v most_tokens=512"


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["max_tokens"], "is not NAME=VALUE"),
        (["=1"], "is not NAME=VALUE"),
        (["max_tokens=0"], "whole number above 0"),
        (["max_tokens=many"], "whole number above 0"),
        (["max_tokens=9", "max_tokens=8"], "given twice"),
        (["max_tokens=9", "max_completion_tokens=9"], "give one of"),
        (["max_tokens=9", "most_tokens=8"], "is below"),
        (["temperature=warm"], "expected a number"),
        (["temperature=nan"], "expected a number"),
        (["timeout=0"], "above 0"),
        (["model=x"], "cannot be set"),
        (["max_token=9"], "is max_tokens meant"),
    ],
)
def test_options_that_make_no_sense_are_one_line(pairs, message):
    with pytest.raises(ConfigError, match=message):
        parse_options(pairs)
