"""Parses `multipart/form-data` (RFC 7578) into a form, with limits on the number of parts and the size of their heads.

The body is in the memory already, and bounded. Files are bytes, other parts are texts; `image[]` is another `image`.
"""

import re
from email.message import Message
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from blip3o.errors import one_line
from serve.http.errors import CLIENT_GONE, ApiError
from serve.http.forms.bodies import check_coding, to_form
from serve.http.forms.images import MultipartForm

F = TypeVar("F", bound=MultipartForm)

MAX_PARTS = 64
_MAX_HEAD = 8192  # bytes
_MAX_BOUNDARY = 70  # characters, by RFC 2046
_FILES = ("image", "mask")
_SPACE = re.compile(rb"[ \t]*")


async def read_form(request: Request, form: type[F]) -> F:
    """The body as a form. Raises `ApiError` for an invalid header, part, or field."""
    check_coding(request.headers)
    boundary = _boundary(request.headers.get("content-type", ""))
    try:
        data = await request.body()
    except ClientDisconnect:
        raise ApiError(CLIENT_GONE, "the client has disconnected") from None
    return to_form(parse_parts(data, boundary), form)


def _parameter(header: str, name: str) -> tuple[str, str]:
    """What a header says before its parameters, in lower case, and one of these; "" if it has none."""
    message = Message()
    message["content-type"] = header
    try:
        found = message.get_param(name)
    except (LookupError, TypeError, ValueError):  # the library reads names as mail does (RFC 2231), and trips over some
        found = None
    return header.partition(";")[0].strip().lower(), found if isinstance(found, str) else ""


def _boundary(content_type: str) -> bytes:
    kind, boundary = _parameter(content_type, "boundary")
    if kind != "multipart/form-data" or not boundary:
        found = f"Content-Type is '{one_line(content_type)}'" if content_type else "the Content-Type header is missing"
        raise ApiError(
            400,
            f"{found}, and this route reads forms: send 'multipart/form-data' with its boundary",
            code="unsupported_content_type",
        )
    if len(boundary) > _MAX_BOUNDARY or not boundary.isascii():
        raise _malformed(f"its boundary must be ASCII of at most {_MAX_BOUNDARY} characters")
    return boundary.encode()


def parse_parts(data: bytes, boundary: bytes) -> dict[str, object]:
    """The parts by name: texts, and for images a list of bytes. Raises `ApiError` for a malformed body."""
    delimiter = b"\r\n--" + boundary
    pieces = (b"\r\n" + data).split(delimiter, MAX_PARTS + 1)
    if len(pieces) > MAX_PARTS + 1:
        raise _malformed(f"it has more than {MAX_PARTS} parts")
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise _malformed("its last boundary is missing")
    values: dict[str, object] = {}
    for piece in pieces[1:-1]:
        name, value = _part(piece)
        if name == "image":
            images = values.setdefault(name, [])
            assert isinstance(images, list)
            images.append(value)
        elif name in values:
            raise _malformed(f"it has the part '{one_line(name)}' twice")
        else:
            values[name] = value
    return values


def _part(piece: bytes) -> tuple[str, object]:
    """The name and the value of one part."""
    gap = _SPACE.match(piece)
    head, found, value = piece[gap.end() if gap else 0 :].partition(b"\r\n\r\n")
    if not found or len(head) > _MAX_HEAD or not head.startswith(b"\r\n"):
        raise _malformed("a part has no head that ends with an empty line")
    fields: dict[str, str] = {}
    for line in head[2:].decode("utf-8", "replace").split("\r\n"):
        name, _, text = line.partition(":")
        fields[name.strip().lower()] = text.strip()
    kind, given = _parameter(fields.get("content-disposition", ""), "name")
    if kind != "form-data" or not given:
        raise _malformed("a part has no name in its Content-Disposition")
    key = given.removesuffix("[]") if given == "image[]" else given
    if key in _FILES:
        return key, value
    try:
        return key, value.decode()
    except UnicodeDecodeError:
        raise _malformed(f"its part '{one_line(key)}' is not UTF-8") from None


def _malformed(why: str) -> ApiError:
    return ApiError(400, f"the body is not a valid form: {why}", code="invalid_form")
