"""What an endpoint's answer without a reply means: wait, skip the item, or stop. Pure.

Gateways report the same fault in different layers: the status line, an `error` inside a 200, or the page of a proxy.
This module reads each of them, together with how long the endpoint asks to wait.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

from blip3o.errors import one_line
from blip3o.evaluate.judges.replies import writable

SHOWN_CHARS = 300  # of what an endpoint said


class FaultKind(Enum):
    """What a fault means for the requests to come."""

    TRANSIENT = "transient: ask again"
    CONTENT = "a content filter refuses this item"
    REQUEST = "this request is refused, perhaps because of its item"
    FATAL = "every request is refused"


@dataclass(frozen=True, kw_only=True)
class EndpointFault:
    """A fault: its kind, what the endpoint said in one line (`message`), and the seconds to wait (None: unknown).

    `words` is the full text. `empty` marks a completion without a reply, which says more about the item than about the
    endpoint.
    """

    kind: FaultKind
    message: str
    wait_s: float | None = None
    words: str = ""
    empty: bool = False


_PASSING_4XX = frozenset({408, 409, 425, 429, 499})
_NEVER_5XX = frozenset({501, 505})
_STOPPING = frozenset({401, 402, 403, 404, 405, 407, 410}) | _NEVER_5XX
_CONTENT_STATUS = frozenset({200, 400, 403, 422})  # with which a content filter may answer

# Where providers put machine-readable codes, HTTP statuses and texts for people.
_CODE_KEYS = frozenset(
    {"code", "type", "status", "reason", "errorcode", "error_code", "blockreason", "block_reason", "error_type"}
)
_STATUS_KEYS = frozenset({"code", "status", "statuscode", "status_code", "http_status", "httpstatuscode"})
_TEXT_KEYS = ("message", "msg", "detail", "error_msg", "errormessage", "faultstring", "raw")

# Codes are compared without case and punctuation (see `_codes`), texts as they are. Both were collected from the
# documentation and the replies of many providers; a fault that no pattern knows is treated by its HTTP status.
_CONTENT_CODE = re.compile(
    "contentfilter|contentpolic|contentmoderation|responsibleai|moderation|datainspection|prohibitedcontent|"
    "^imagesafety$|^safety$|sensitiveword|sensitivecontent|policyviolation|guardrail|unsafecontent|^recitation$|"
    "^blocklist$|^spii$|^1301$"
)
_CONTENT_WORDS = re.compile(
    r"content[ _-]?(?:filter|polic|management polic|moderation)|content exists risk|敏感|违规|不安全内容|"
    r"responsible ?ai|flagged|safety (?:system|filter|polic|"
    r"settings? block)|(?:violat\w+|against|breach\w*) .{0,60}(?:polic|guideline|terms)|(?:policy|guideline)\w* "
    r"violation|prohibited content|(?:sensitive|inappropriate|unsafe|harmful|disallowed|explicit) "
    r"(?:content|information|words|material|image)|data.?inspection|guardrail|"
    r"(?:blocked|rejected|refused|filtered) .{0,40}(?:safety|content|moderation|filter)",
    re.IGNORECASE,
)
_ACCOUNT = re.compile(r"account|organi[sz]ation|api[ _-]?key|subscription", re.IGNORECASE)
_BILLING_CODE = re.compile(
    "insufficientquota|insufficientbalance|insufficientcredit|billing|paymentrequired|creditlimit|budgetexceeded|arrear"
)
_BILLING_WORDS = re.compile(
    r"insufficient (?:quota|balance|credits?|funds)|credit balance is too low|out of credits|billing hard limit|"
    r"exceeded your current quota|add (?:more )?credits|payment required|budget has been exceeded|账户已?欠费|余额不足",
    re.IGNORECASE,
)
_ACCESS_CODE = re.compile(
    "invalidapikey|incorrectapikey|apikeyinvalid|authentication|unauthorized|permission|modelnotfound|invalidmodel|modelnotexist|"
    "deploymentnotfound|accountdeactivated|modelnotsupported"
)
_MODEL_WORDS = re.compile(
    r"model\b.{0,120}(?:does(?: not|n't) exist|not found|not exist|unknown model)|"
    r"(?:invalid|unknown|no such) model",
    re.IGNORECASE,
)
_PASSING_CODE = re.compile(
    "ratelimit|overload|servererror|internal|timeout|unavailable|exhausted|throttl|toomanyrequests|capacity|busy|"
    "^apierror$|upstream|badgateway|providererror|serviceerror"
)
_ACCESS_WORDS = re.compile(r"api key (?:not valid|expired)|location is not supported", re.IGNORECASE)
_PASSING_WORDS = re.compile(
    r"rate.?limit|throttl|overloaded|too many requests|try again|please retry|temporar", re.IGNORECASE
)
_REQUEST_CODE = re.compile("invalidrequest|invalidargument|badrequest|validation|invalidparameter|unsupported")


def parse_body(data: bytes) -> object:
    """The JSON of a body. Raises `ValueError` for a page, an empty body or a truncated one."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def fault_of(status: int, headers: Mapping[str, str], data: bytes, *, now: float) -> EndpointFault | None:
    """The fault in an answer; None for a 200 whose JSON reports no error. `now` is in seconds since the epoch.

    `headers` have names in lower case.
    """
    status = 200 if 200 <= status < 300 else status  # every success is treated alike
    try:
        body = parse_body(data)
    except ValueError:
        return _of_page(status, headers, data, now)
    error = _error_in(body, status)
    if error is None:
        return None
    inner = _status_in(error)
    # A gateway that answers 200 hides the real status inside the error.
    number = inner if status == 200 and inner is not None else status
    stated = writable(_message(error)) or one_line(data.decode(errors="replace"), limit=SHOWN_CHARS)
    words = one_line(json.dumps(error, ensure_ascii=False), limit=4000)
    return EndpointFault(
        kind=_kind(number, _codes(error), words),
        message=f"HTTP {status}: {stated}" if number == status else f"HTTP {status} with an error {number}: {stated}",
        wait_s=retry_after(headers, words, now=now, limited=number == 429),
        words=words,
    )


def _of_page(status: int, headers: Mapping[str, str], data: bytes, now: float) -> EndpointFault:
    text = one_line(data.decode(errors="replace"), limit=SHOWN_CHARS)
    # The words of a proxy's page are about the proxy, so only its status counts.
    page = "<html" in text.lower() or "<!doctype" in text.lower()
    kind = FaultKind.TRANSIENT if status == 200 else _kind(status, (), "" if page else text)
    message = f"HTTP {status}: {text}" if status != 200 else f"HTTP 200 without whole JSON: {text or 'an empty body'}"
    return EndpointFault(
        kind=kind, message=message, wait_s=retry_after(headers, text, now=now, limited=status == 429), words=text
    )


def _kind(status: int, codes: tuple[str, ...], words: str) -> FaultKind:
    def coded(pattern: re.Pattern[str]) -> bool:
        return any(pattern.search(code) for code in codes)

    if _refuses_content(status, words, coded=coded(_CONTENT_CODE)):
        return FaultKind.CONTENT
    # Gemini says "exceeded your current quota" about a limit per minute, too.
    spent = _BILLING_WORDS.search(words) is not None and not coded(re.compile("exhausted"))
    if spent or coded(_BILLING_CODE) or coded(_ACCESS_CODE):
        return FaultKind.FATAL
    # From here on the order matters: a known transient status wins over words such as "model", which also appear in
    # the messages of overloaded servers.
    if status in _PASSING_4XX or (status >= 500 and status not in _NEVER_5XX):
        return FaultKind.TRANSIENT
    if status in _STOPPING or 300 <= status < 400 or _MODEL_WORDS.search(words) or _ACCESS_WORDS.search(words):
        return FaultKind.FATAL
    if coded(_PASSING_CODE) or (status == 200 and not coded(_REQUEST_CODE)) or _PASSING_WORDS.search(words):
        return FaultKind.TRANSIENT
    return FaultKind.REQUEST


def _refuses_content(status: int, words: str, *, coded: bool) -> bool:
    # These statuses are never about content, even if the message mentions a policy.
    if status in (401, 402, 404, 407, 429):
        return False
    if coded or status == 451:  # "unavailable for legal reasons"
        return True
    stated = status in _CONTENT_STATUS and _CONTENT_WORDS.search(words) is not None
    # A 403 that mentions the account is about access rights, whatever policy it cites.
    return stated and not (status == 403 and _ACCOUNT.search(words))


def _error_in(body: object, status: int) -> object | None:
    """The part of a body that reports an error, or None."""
    if isinstance(body, list) and body:  # Gemini wraps its errors in a list
        body = body[0]
    if not isinstance(body, Mapping):
        return None if status == 200 else body if body is not None else ""
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    for holder in (body, first):
        for name in ("error", "errors", "fault", "promptFeedback", "prompt_feedback"):
            if isinstance(holder, Mapping) and holder.get(name):
                return holder[name]
    bare = not choices and (body.get("object") == "error" or any(name in body for name in (*_TEXT_KEYS, "code")))
    return body if status != 200 or bare else None


def _leaves(value: object, key: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """The scalars of a JSON value, each with its key."""
    if isinstance(value, str) and value[:1] in "{[" and depth < 6:  # gateways quote the provider's JSON
        try:
            value = parse_body(value.encode())
        except ValueError:
            pass
    if isinstance(value, Mapping) and depth < 6:
        for name, inner in value.items():
            yield from _leaves(inner, str(name).lower(), depth + 1)
    elif isinstance(value, list) and depth < 6:
        for inner in value:
            yield from _leaves(inner, key, depth + 1)
    else:
        yield key, value


def _codes(error: object) -> tuple[str, ...]:
    """The values of all keys that hold codes, reduced to lower-case letters and digits."""
    found = [value for key, value in _leaves(error) if key in _CODE_KEYS and isinstance(value, str | int)]
    return tuple(re.sub("[^a-z0-9]", "", str(value).lower()) for value in found)


def _status_in(error: object) -> int | None:
    for key, value in _leaves(error):
        if key in _STATUS_KEYS and re.fullmatch("[45][0-9][0-9]", str(value)):
            return int(str(value))
    return None


def _message(error: object) -> str:
    if isinstance(error, str):
        return one_line(error, limit=SHOWN_CHARS)
    texts = {key: value for key, value in reversed(list(_leaves(error))) if isinstance(value, str)}
    return next((one_line(texts[key], limit=SHOWN_CHARS) for key in _TEXT_KEYS if texts.get(key)), "")


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|[dhms]))+")
_PIECE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[dhms])")
_TOLD = re.compile(r"(?:try again|retry(?: after)?|retrydelay)\W{0,4}(?:in |after )?\W{0,2}([0-9])", re.IGNORECASE)
_RESETS = re.compile(r"(?:x-|anthropic-)?rate-?limit(?:-(requests|tokens|input-tokens|output-tokens))?-reset(?:-(.+))?")
_LONG_AGO = 1e9  # a larger number is a time since the epoch and no duration


def retry_after(headers: Mapping[str, str], words: str, *, now: float, limited: bool) -> float | None:
    """The seconds that an answer asks to wait, never below 0; None where it does not say.

    `Retry-After` (seconds or a date) and its variants in milliseconds take precedence, then what the text says, then,
    for a request that was rate `limited`, the time at which the limit is reset.
    """
    # The most precise header first.
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        wait = _number(headers.get(name))
        if wait is not None:
            return wait / 1000
    wait = seconds_until(headers.get("retry-after"), now)
    if wait is not None:
        return wait
    match = _TOLD.search(words)
    if match:
        return _spoken(words[match.start(1) :])
    return _reset(headers, now) if limited else None


def _spoken(text: str) -> float | None:
    duration = _DURATION.match(text)
    if duration and not re.match("[a-z]", text[duration.end() :]):
        return seconds_until(duration.group(), 0)
    found = re.match(r"([0-9]+(?:\.[0-9]+)?) ?(milli|minute|min|hour|second|sec|)", text)
    scale = {"milli": 0.001, "minute": 60.0, "min": 60.0, "hour": 3600.0}
    return float(found.group(1)) * scale.get(found.group(2), 1.0) if found else None


def seconds_until(value: str | None, now: float) -> float | None:
    """Seconds from `now` until the time in a header: a number of seconds, "6m0s", a date or a time since the epoch."""
    text = (value or "").strip()
    number = _number(text)
    if number is not None:
        if number > _LONG_AGO:
            number = (number / 1000 if number > _LONG_AGO * 1000 else number) - now
        return max(number, 0.0)
    if _DURATION.fullmatch(text):
        return sum(float(count) * _UNITS[unit] for count, unit in _PIECE.findall(text))
    date = _date(text)
    return None if date is None else max(date - now, 0.0)


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _date(text: str) -> float | None:
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            date = read(text)
            return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return None


def _reset(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds until the exhausted limits are reset; of all limits where it is unknown which are exhausted."""
    # A limit whose "remaining" is not 0 did not stop this request, so its reset does not matter.
    used: list[float] = []
    others: list[float] = []
    for name, value in headers.items():
        if not _RESETS.fullmatch(name):
            continue
        wait = seconds_until(value, now)
        left = _number(headers.get(name.replace("reset", "remaining")))
        if wait is not None:
            (others if left else used).append(wait)
    return max(used or others, default=None)


def unsupported_field(words: str, names: Mapping[str, Any] | tuple[str, ...]) -> str | None:
    """The field among `names` that an endpoint says it does not support, or None."""
    # The message must say that something is unsupported, not merely mention the field.
    if not re.search(
        r"unsupported|not.{0,3}support|unrecogni[sz]ed|unknown|not permitted|not allowed|unexpected|deprecated|"
        r"extra (?:inputs|fields)|only the default|instead|invalid.?param|additional propert",
        words,
        re.IGNORECASE,
    ):
        return None
    return next((name for name in names if re.search(rf"(?<![\w]){re.escape(name)}(?![\w])", words)), None)
