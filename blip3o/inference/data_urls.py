"""`data:` URLs (RFC 2397) to bytes, in every form that browsers and MIME encoders write.

Parsing follows the WHATWG's URL and Fetch standards: names in any case, white space anywhere in base64, percent escapes
(`%2B`). It also accepts what clients send in practice: base64's URL-safe alphabet, missing padding, `;base64` before
other parameters. The media type is ignored, since it is not trusted: the bytes determine the format.
"""

import binascii
import re
from urllib.parse import unquote, unquote_to_bytes

from blip3o.errors import RequestError

FORM = "data:image/png;base64,..."
# Up to the first comma outside a quoted parameter value; an unclosed quote is a plain character.
# Possessive, since the text may have tens of millions of characters and backtracking never helps.
_HEAD = re.compile(r'(?>[^,"]+|"[^"]*"|")*+')
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_SPACE = re.compile(rb"[ \t\n\r\f\v]+")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def read_data_url(url: str) -> bytes:
    """The bytes of a `data:` URL. Raises `RequestError` for anything else; its message follows the field's name."""
    url = url.strip()
    if url[:5].lower() != "data:":
        raise RequestError(_not_a_data_url(url))
    rest = url[5:].partition("#")[0]
    found = _HEAD.match(rest)
    assert found  # it matches even an empty string
    head, payload = found[0], rest[found.end() :]
    if not payload:
        raise RequestError(f"has no comma between the media type and the data: write '{FORM}'")
    try:
        data = unquote_to_bytes(payload[1:])
    except UnicodeEncodeError:
        raise RequestError("holds a lone surrogate, which is no text: write the data in base64") from None
    parameters = [part.strip().lower() for part in unquote(head).split(";")]
    return _from_base64(data) if "base64" in parameters[1:] else data


def _from_base64(data: bytes) -> bytes:
    """Decodes base64 in either alphabet, with or without padding and white space. Raises `RequestError`."""
    digits = _SPACE.sub(b"", data).translate(_URL_SAFE)
    body = digits.rstrip(b"=")
    if len(digits) - len(body) > 2:
        raise RequestError("is not valid base64: it ends in more than two '='")
    if odd := _NOT_BASE64.search(body):
        raise RequestError(f"is not valid base64: it has {ascii(odd[0].decode('latin-1'))} at position {odd.start()}")
    if len(body) % 4 == 1:
        raise RequestError(f"is not valid base64: {len(body)} characters cannot be complete: is it truncated?")
    return binascii.a2b_base64(body + b"=" * (-len(body) % 4))


def _not_a_data_url(url: str) -> str:
    if not url:
        return f"is empty: send '{FORM}'"
    if scheme := _SCHEME.match(url):
        return f"is a {scheme[0]} URL, and nothing is fetched from elsewhere: send the image as '{FORM}'"
    return f"is no data URL: send '{FORM}', the media type before the base64"
