"""Parses the body of a request into a form of `serve.http.forms`, or rejects it with the fault and its path.

JSON follows RFC 8259: UTF-8 (a byte order mark is allowed), no `NaN`, each name once per object.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from blip3o.errors import one_line
from serve.http.errors import CLIENT_GONE, ApiError
from serve.http.forms.base import UNKNOWN, Body
from serve.http.forms.fields import quoted

B = TypeVar("B", bound=Body)

# A body could otherwise hold millions, whose checks would stop the process for minutes. A conversation has at most
# `MAX_PROMPT` characters of text and comes nowhere near, and base64 has no brackets.
_MAX_CONTAINERS = 50_000
_MAX_NAMES = 1000

_CODES = {
    "extra_forbidden": UNKNOWN,
    UNKNOWN: UNKNOWN,
    "missing": "missing_required_parameter",
    "string_too_long": "context_length_exceeded",
    "context_length_exceeded": "context_length_exceeded",
}
_EXPECTED = {
    "model_type": "an object",
    "tuple_type": "a list",
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
}
_MESSAGES = {
    "missing": "is required",
    "null": "is null, and it is required",
    "extra_forbidden": "this parameter is unknown here",
}


async def read_body(request: Request, form: type[B]) -> B:
    """The body as a form. Raises `ApiError` for an invalid header, JSON, or field."""
    _check_headers(request.headers)
    try:
        data = await request.body()
    except ClientDisconnect:
        raise ApiError(CLIENT_GONE, "the client has disconnected") from None
    return to_form(parse_json(data), form)


def check_coding(headers: Headers) -> None:
    """Raises `ApiError` 415 for a compressed body, which may be far larger than it looks."""
    coding = headers.get("content-encoding", "identity")
    if coding.strip().lower() not in ("", "identity"):
        raise ApiError(415, f"Content-Encoding '{one_line(coding)}' is not read: send the body uncompressed")


def _check_headers(headers: Headers) -> None:
    check_coding(headers)
    sent = headers.get("content-type", "")
    kind = sent.partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    found = f"Content-Type is '{one_line(sent)}'" if sent else "the Content-Type header is missing"
    message = f"{found}, and this route reads JSON: send the header 'Content-Type: application/json'"
    raise ApiError(400, message, code="unsupported_content_type")


class _NotJsonError(ValueError):
    """The text parses in Python, but is not valid JSON."""


def parse_json(data: bytes) -> object:
    """The value of a JSON text. Raises `ApiError`, with the position if there is one."""
    if not data.strip():
        raise ApiError(400, "the body is empty: send a JSON object", code="missing_required_parameter")
    if (count := data.count(b"{") + data.count(b"[")) > _MAX_CONTAINERS:
        message = f"the body has {count} brackets that open, at most {_MAX_CONTAINERS} are read: send less"
        raise ApiError(400, message, code="invalid_json")
    try:
        text = data.decode(json.detect_encoding(data))
        parsed: object = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        fault = f"it is not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start})"
    except json.JSONDecodeError as error:
        fault = f"{error.msg} (line {error.lineno}, column {error.colno})"
    except _NotJsonError as error:
        fault = str(error)
    except ValueError:  # Python's limit on digits
        fault = "it has a number of thousands of digits"
    except RecursionError:
        fault = "it is nested too deeply"
    else:
        return parsed
    raise ApiError(400, f"the body is not valid JSON: {fault}", code="invalid_json")


def _refuse_constant(name: str) -> object:
    raise _NotJsonError(f"{name} is not a JSON value; send a number, or null")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > _MAX_NAMES:
        raise _NotJsonError(f"an object has {len(pairs)} names, at most {_MAX_NAMES} are read")
    made = dict(pairs)
    if len(made) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise _NotJsonError(f"an object has the name '{one_line(twice)}' twice")
    return made


def to_form(value: object, form: type[B]) -> B:
    """A JSON value as a form. Raises `ApiError`; its `param` is the path of the field at fault in the request."""
    try:
        return form.model_validate(value)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
    kind, place = fault["type"], fault["loc"]
    if kind == "missing" and _holds_null(value, place):
        kind = "null"
    # These paths are those of the request: no form has a union, whose members pydantic would insert into them.
    param = ".".join(str(part) for part in place) or None
    subject = f"{one_line(param)}: " if param else "the body " if kind in _EXPECTED else ""
    raise ApiError(400, subject + _message(kind, fault), param=param, code=_CODES.get(kind, "invalid_value"))


def _holds_null(value: Any, place: tuple[int | str, ...]) -> bool:  # noqa: ANN401 - JSON
    """Whether the request has the field with the value null, which is invalid for a required field."""
    *above, name = place
    for part in above:
        value = value[part]
    return name in value


def _message(kind: str, fault: Mapping[str, Any]) -> str:
    if wanted := _EXPECTED.get(kind):
        return f"must be {wanted}, not {quoted(fault['input'])}"
    if kind == "literal_error":
        return f"{fault['msg']}, not {quoted(fault['input'])}"
    return _MESSAGES.get(kind) or fault["msg"].removeprefix("Value error, ")
