"""What answers that are no replies mean, and for how long they ask to wait; a fuzz of both."""

import json
import random

import pytest

from blip3o.evaluate.judges.faults import FaultKind, fault_of, retry_after, seconds_until, unsupported_field
from tests.evaluate.endpoint import completion

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("20ms", 0.02),
        ("1h2m3.5s", 3723.5),
        ("2", 2),
        ("0.5", 0.5),
        ("Fri, 15 Jan 2027 08:00:09 GMT", 9),
        ("2027-01-15T08:00:09Z", 9),
        ("2027-01-15T09:00:09+01:00", 9),
        (str(int(NOW) + 9), 9),
        (str(int(NOW + 9) * 1000), 9),
        (str(int(NOW) - 9), 0),
        ("Fri, 15 Jan 2027 07:00:09 GMT", 0),
        *((text, None) for text in ("", "-5", "nan", "inf", "1e999", "soon", "Wed, 99 Foo 2026", "6m 0s x", "１s")),
    ],
)
def test_a_moment_is_told_in_many_ways(text, seconds):
    assert seconds_until(text, NOW) == (None if seconds is None else pytest.approx(seconds))


def test_limits_count_for_requests_that_were_limited_alone():
    headers = {"x-ratelimit-reset-requests": "9s"}
    assert retry_after(headers, "", now=NOW, limited=True) == 9
    assert retry_after(headers, "", now=NOW, limited=False) is None
    assert retry_after(headers | {"retry-after": "2"}, "try again in 3s", now=NOW, limited=True) == 2
    assert retry_after(headers, "please try again in 3s", now=NOW, limited=True) == 3


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_tokens"),
        ("max_tokens is too large: 9000", None),
        ("`temperature` is deprecated for this model", "temperature"),
        ('Unknown name "max_token"', None),
        ("Extra inputs are not permitted: temperature", "temperature"),
    ],
)
def test_a_field_that_is_not_taken_is_named(words, name):
    assert unsupported_field(words, ("max_tokens", "temperature")) == name


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b'{"error": {"message": "Invalid value for safety_settings"}}', FaultKind.REQUEST),
        (400, b'{"error": {"message": "timeout must be a number"}}', FaultKind.REQUEST),
        (400, b'{"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}', FaultKind.TRANSIENT),
        (403, b'{"error": {"message": "Your organization violated our usage policies"}}', FaultKind.FATAL),
        (200, b'{"error": "model \'x\' not found"}', FaultKind.FATAL),
        (200, b'{"object": "error", "message": "CUDA error", "code": 50001}', FaultKind.TRANSIENT),
        (200, b'{"error": {"type": "invalid_request_error", "message": "bad image"}}', FaultKind.REQUEST),
        (307, b"", FaultKind.FATAL),
        (501, b"", FaultKind.FATAL),
        (507, b"", FaultKind.TRANSIENT),
        (204, b"", FaultKind.TRANSIENT),
        (500, b"null", FaultKind.TRANSIENT),
    ],
)
def test_the_kind_of_a_fault(status, body, kind):
    fault = fault_of(status, {}, body, now=NOW)
    assert fault is not None and fault.kind is kind


@pytest.mark.parametrize("seed", range(3))
def test_any_answer_has_a_kind_and_a_wait_that_can_be_waited(seed):
    chance = random.Random(seed)
    words = "content_filter rate_limit_exceeded insufficient_quota 429 401 {} [1] try again in 6m0s flagged".split()
    names = "error code type status message choices errors fault detail innererror metadata raw promptFeedback".split()

    def shape(depth):
        if depth == 0 or chance.random() < 0.3:
            return chance.choice(
                [None, True, 7, 429, 1e308, "", *words, "\ud83d", " ".join(chance.choices(words, k=3))]
            )
        if chance.random() < 0.3:
            return [shape(depth - 1) for _ in range(chance.randint(0, 2))]
        return {name: shape(depth - 1) for name in chance.sample(names, chance.randint(0, 4))}

    for _ in range(1500):
        body = completion("x").body if chance.random() < 0.1 else shape(4)
        data = chance.choice([str(body).encode(errors="replace"), json.dumps(body).encode()])
        headers = {"retry-after": chance.choice(["1", "x", "", "1" * 400, "Fri, 15 Jan 2027 08:00:07 GMT"])}
        headers |= {"x-ratelimit-reset": chance.choice(["1s", "9" * 30, "-"])}
        fault = fault_of(chance.choice([200, 204, 302, 400, 401, 403, 429, 500, 529]), headers, data, now=NOW)
        assert fault is None or (isinstance(fault.kind, FaultKind) and "\n" not in fault.message)
        assert fault is None or fault.wait_s is None or 0 <= fault.wait_s < float("inf")
        fault is None or fault.message.encode()


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (400, {"message": "litellm.ContentPolicyViolationError: x", "code": "400"}, FaultKind.CONTENT),
        (400, {"message": "Content Exists Risk", "type": "invalid_request_error"}, FaultKind.CONTENT),
        (400, {"message": "输入内容包含敏感信息", "code": "400"}, FaultKind.CONTENT),
        (400, {"message": "Budget has been exceeded! Max budget: 10.0", "type": "budget_exceeded"}, FaultKind.FATAL),
        (400, {"message": "Access denied", "code": "Arrearage"}, FaultKind.FATAL),
        (429, {"message": "您的账户已欠费，请充值后重试", "code": "1113"}, FaultKind.FATAL),
        (400, {"message": "x", "details": [{"reason": "API_KEY_INVALID"}]}, FaultKind.FATAL),
        (400, {"message": "API key not valid. Please pass a valid API key."}, FaultKind.FATAL),
        (400, {"message": "User location is not supported for the API use."}, FaultKind.FATAL),
        (400, {"message": "ThrottlingException: Too many tokens"}, FaultKind.TRANSIENT),
        (429, {"message": "您当前使用该API的并发数过高", "code": "1302"}, FaultKind.TRANSIENT),
        (400, {"message": "the picture is too large", "code": "400"}, FaultKind.REQUEST),
    ],
)
def test_what_gateways_of_several_makers_say(status, said, kind):
    found = fault_of(status, {}, json.dumps({"error": said}).encode(), now=NOW)
    assert found is not None and found.kind is kind
