"""Pictures that stand in a table itself: data URLs, and bytes as base64."""

import base64
import binascii
import hashlib
import re
from urllib.parse import unquote_to_bytes

from blip3o.data.images.containers import image_format
from blip3o.data.shards.damage import DamagedSampleError

_SPACE = re.compile(r"[ \t\r\n]+")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_HEAD_CHARS = 88  # that decode into enough bytes to recognise a picture


def is_data_url(text: str) -> bool:
    """Whether a text is a data URL."""
    return text[:5].lower() == "data:" and "," in text


def bytes_of_data_url(url: str) -> bytes:
    """The content of a data URL. Raises `DamagedSampleError` if it is not base64 where it says so."""
    head, _, body = url.partition(",")
    return bytes_of_base64(body) if head.lower().rstrip().endswith(";base64") else unquote_to_bytes(body)


def bytes_of_base64(text: str) -> bytes:
    """What base64 stands for: its usual or its URL-safe letters, with or without padding and line breaks.

    Raises `DamagedSampleError` for anything else.
    """
    letters = _SPACE.sub("", text.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=")).rstrip("=")
    try:
        return base64.b64decode(letters.translate(str.maketrans("-_", "+/")) + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DamagedSampleError(f"undecodable image: its base64 is damaged: {error}") from error


def is_picture_in_base64(text: str) -> bool:
    """Whether a text can only be a picture: base64 of bytes that begin as one."""
    head = _SPACE.sub("", text[: 2 * _HEAD_CHARS])[:_HEAD_CHARS]
    if len(head) < _HEAD_CHARS or not _BASE64.fullmatch(head):
        return False
    return image_format(bytes_of_base64(head)) is not None


def content_name(data: bytes) -> str:
    """A name for a picture that has none, the same for the same bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()[:32]}"
