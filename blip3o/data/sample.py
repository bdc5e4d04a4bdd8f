"""What a sample is: which members of a tar make one, and what its text must look like. Bytes in, values out, no I/O.

A sample is an image, a caption (KEY.txt) and optionally a record (KEY.json). What is wrong with one is a
`DamagedSampleError`, found when shards are indexed and checked again, by the same functions, when they are read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blip3o.errors import DataError
from blip3o.types import Member

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CAPTION_EXTENSION = "txt"
RECORD_EXTENSION = "json"
MAX_CAPTION_CHARS = 100_000
# Far above any photograph; a member beyond it is refused before its bytes are read.
MAX_MEMBER_BYTES = 256 * 2**20


class DamagedSampleError(DataError):
    """A sample that cannot be used; `reason` is what the ledger says of it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleMembers:
    """The members that are read: image, caption and, where there is one, the record."""

    image: Member
    caption: Member
    record: Member | None

    def all(self) -> list[Member]:
        """Those that exist, in the order image, caption, record."""
        return [self.image, self.caption] + ([self.record] if self.record else [])


def choose_members(members: Sequence[Member]) -> SampleMembers:
    """Picks a sample's members by extension; of several images the first in `IMAGE_EXTENSIONS` counts.

    Raises `DamagedSampleError` where image or caption is missing, or a member is larger than any sample's should be.
    """
    by_ext = {member.ext: member for member in members}
    image = next((by_ext[ext] for ext in IMAGE_EXTENSIONS if ext in by_ext), None)
    caption = by_ext.get(CAPTION_EXTENSION)
    if image is None:
        raise DamagedSampleError("missing image")
    if caption is None:
        raise DamagedSampleError("missing caption")
    chosen = SampleMembers(image=image, caption=caption, record=by_ext.get(RECORD_EXTENSION))
    for member in chosen.all():
        if member.size > MAX_MEMBER_BYTES:
            raise DamagedSampleError(f"member too large: {member.ext} of {member.size} bytes, limit {MAX_MEMBER_BYTES}")
    return chosen


def decode_caption(data: bytes) -> str:
    """The caption without surrounding white space.

    Raises `DamagedSampleError` if it is empty, not UTF-8, or longer than `MAX_CAPTION_CHARS`.
    """
    try:
        caption = data.decode().strip()
    except UnicodeDecodeError as error:
        raise DamagedSampleError(f"caption is not UTF-8: byte {error.start}") from error
    if not caption:
        raise DamagedSampleError("empty caption")
    if len(caption) > MAX_CAPTION_CHARS:
        raise DamagedSampleError(f"caption too long: {len(caption)} characters, limit {MAX_CAPTION_CHARS}")
    return caption


def decode_record(data: bytes) -> dict[str, Any]:
    """KEY.json as a dictionary. Raises `DamagedSampleError` if it is not a JSON object."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedSampleError(f"record is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DamagedSampleError(f"record is not a JSON object but a {type(record).__name__}")
    return record
