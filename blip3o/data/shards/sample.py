"""What a sample is: which members of a tar form one, and what its text must look like. Bytes in, values out, no I/O.

A sample is an image and a caption (KEY.txt), a record (KEY.json), or both; a record can hold the caption. A source may
name other extensions (`MembersConfig`). What is wrong with one is a `DamagedSampleError`, found when
shards are indexed and checked again, by the same functions, when they are read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blip3o.config.shards import MAX_CAPTION_CHARS, MembersConfig
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.text.conversations import conversation_pairs
from blip3o.data.text.questions import check_questions
from blip3o.errors import quoted
from blip3o.types import Member

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "jpe", "jfif")
CAPTION_EXTENSION = "txt"
RECORD_EXTENSION = "json"
# Last parts of extensions under which a user would look for pictures and captions, whether they are read or not.
_UNREAD_PICTURES = {"avif", "bmp", "gif", "heic", "heif", "jp2", "jxl", "tif", "tiff"}
_LIKE_PICTURES = {*IMAGE_EXTENSIONS, *_UNREAD_PICTURES}
_LIKE_CAPTIONS = {CAPTION_EXTENSION, "cap", "caption", "text"}
USUAL_MEMBERS = MembersConfig()
NO_CAPTION = "missing caption"  # what a reason begins with
SHOWN = 6  # members of a key that a reason names
# Far above any photograph; a member beyond it is refused before its bytes are read.
MAX_MEMBER_BYTES = 256 * 2**20
# What editors on Windows put before a text.
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A sample's bytes as they lie in its shard; `caption` and `record` are None where there is none."""

    image: bytes
    caption: bytes | None
    record: bytes | None

    def parts(self) -> list[bytes]:
        """Those that exist, in the order image, caption, record."""
        return [part for part in (self.image, self.caption, self.record) if part is not None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """The text of a sample: its caption, and its record (empty where there is none)."""

    caption: str
    record: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleMembers:
    """The members that are read: image, caption and record, of which one may be missing."""

    image: Member
    caption: Member | None
    record: Member | None

    def all(self) -> list[Member]:
        """Those that exist, in the order image, caption, record."""
        return [member for member in (self.image, self.caption, self.record) if member is not None]


def choose_members(members: Sequence[Member], names: MembersConfig = USUAL_MEMBERS) -> SampleMembers:
    """Picks a sample's members by extension; of several images it takes the first in `IMAGE_EXTENSIONS`.

    Raises `DamagedSampleError` where there is no image, neither caption nor record, or a member is larger than any
    sample's should be.
    """
    by_ext = {member.ext: member for member in members}
    images = (names.image,) if names.image else IMAGE_EXTENSIONS
    image = next((by_ext[ext] for ext in images if ext in by_ext), None)
    caption = by_ext.get(names.caption or CAPTION_EXTENSION)
    record = by_ext.get(names.record or RECORD_EXTENSION)
    if image is None:
        raise DamagedSampleError(f"missing image{_found_instead(list(by_ext), images, image=True)}")
    if caption is None and record is None:
        wanted = (names.caption or CAPTION_EXTENSION, names.record or RECORD_EXTENSION)
        raise DamagedSampleError(f"{NO_CAPTION}{_found_instead(list(by_ext), wanted, image=False)}")
    chosen = SampleMembers(image=image, caption=caption, record=record)
    for member in chosen.all():
        if member.size > MAX_MEMBER_BYTES:
            raise DamagedSampleError(f"member too large: {member.ext} of {member.size} bytes, limit {MAX_MEMBER_BYTES}")
    return chosen


def _found_instead(found: Sequence[str], wanted: Sequence[str], *, image: bool) -> str:
    """What a key has instead of the wanted member, and the option that reads it; empty if it has nothing unusual."""
    usual = {*IMAGE_EXTENSIONS, CAPTION_EXTENSION, RECORD_EXTENSION}
    if usual.issuperset(found) and usual.issuperset(wanted):
        return ""
    listed = ", ".join(quoted(ext)[1:-1] for ext in found[:SHOWN]) + (", …" if len(found) > SHOWN else "")
    return f": the key has {listed}, not {' or '.join(wanted)}: {_switch(found, image=image)}"


def _switch(found: Sequence[str], *, image: bool) -> str:
    """How the image (or the caption) of a key could be read."""
    pictures, captions = ([ext for ext in found if is_like(ext)] for is_like in (is_like_picture, is_like_caption))
    if image and pictures and not any(ext.rpartition(".")[2] in IMAGE_EXTENSIONS for ext in pictures):
        return "convert the picture"
    stems = {ext.rpartition(".")[0] for ext in pictures} & {ext.rpartition(".")[0] for ext in captions}
    if stems - {""}:
        return "set key: last_dot for the source to read each"
    others = [ext for ext in found if ext not in (*pictures, *captions, RECORD_EXTENSION)][:1]
    pictures, captions = pictures or others * image, captions or others * (not image)
    named = [f"image: {ext}" for ext in pictures[:1] if ext not in IMAGE_EXTENSIONS]
    named += [f"caption: {ext}" for ext in captions[:1] if ext != CAPTION_EXTENSION]
    return f"set members: {{{', '.join(named)}}} for the source to read it" if named else "write one for each key"


def is_like_picture(ext: str) -> bool:
    """Whether a member with this extension looks like a picture to a reader of the archive."""
    return ext.rpartition(".")[2] in _LIKE_PICTURES


def is_like_caption(ext: str) -> bool:
    """The same for a caption."""
    return ext.rpartition(".")[2] in _LIKE_CAPTIONS


def decode_words(stored: Stored, *, max_caption_chars: int = MAX_CAPTION_CHARS) -> Words:
    """Caption and record of a sample. Raises `DamagedSampleError` as `decode_caption` and `decode_record` do.

    Without a caption of its own, that of the record counts: `caption`, the first of `captions`, `text`, `prompt`,
    `Task1.Caption` (as JourneyDB has them), else the first answer of its conversation. A record with none of these may
    have a list of captions as `caption`, `text` or `prompt`, or a conversation as `messages` or `texts`; they come
    back under our names, `captions` and `conversations`.
    """
    caption = None if stored.caption is None else decode_caption(stored.caption, max_chars=max_caption_chars)
    record = {} if stored.record is None else decode_record(stored.record)
    if caption is None:
        record = _under_our_names(record)
        caption = _checked_caption(caption_of(record), max_caption_chars)
    return Words(caption=caption, record=record)


def caption_of(record: dict[str, Any]) -> str:
    """The caption in a record, see `decode_words`. Raises `DamagedSampleError` if there is none."""
    caption = _stated_caption(record)
    if caption is not None:
        return caption
    if record.get("conversations"):
        return conversation_pairs(record["conversations"])[0][1]
    raise DamagedSampleError(f"{NO_CAPTION}{_held(record)}")


def _held(record: dict[str, Any]) -> str:
    """What a record has that has no caption."""
    if not record:
        return ""
    listed = ", ".join(quoted(name)[1:-1] for name in list(record)[:SHOWN]) + (", …" if len(record) > SHOWN else "")
    return f": no text is under caption, captions, text or prompt; the record has {listed}"


def _stated_caption(record: dict[str, Any]) -> str | None:
    captions, task = record.get("captions"), record.get("Task1")
    stated = [
        record.get("caption"),
        captions[0] if captions else None,
        record.get("text"),
        record.get("prompt"),
        task.get("Caption") if isinstance(task, dict) else None,
    ]
    return next((caption for caption in stated if isinstance(caption, str)), None)


def _under_our_names(record: dict[str, Any]) -> dict[str, Any]:
    """A record without a caption or a conversation where we look for them, with what others call so."""
    if _stated_caption(record) is not None or record.get("conversations"):
        return record
    for name in ("caption", "text", "prompt"):
        texts = record.get(name)
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            told = [text for text in texts if text.strip()]
            if told:
                return record | {"captions": told}
    messages = record.get("messages")
    if isinstance(messages, list) and messages:
        return record | {"conversations": messages}
    turns = _turns(record.get("texts"))
    return record | {"conversations": turns} if turns else record


def _turns(texts: object) -> list[dict[str, object]]:
    """A list of `{"user": question, "assistant": answer}`, as The Cauldron has them, as turns; empty if it is none."""
    pairs = texts if isinstance(texts, list) else []
    if not all(isinstance(pair, dict) and {"user", "assistant"} <= pair.keys() for pair in pairs):
        return []
    return [{"role": role, "content": pair[role]} for pair in pairs for role in ("user", "assistant")]


def decode_caption(data: bytes, *, max_chars: int = MAX_CAPTION_CHARS) -> str:
    """The caption without surrounding white space.

    Raises `DamagedSampleError` if it is empty, not UTF-8, or longer than `max_chars`.
    """
    try:
        caption = data.decode().removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise DamagedSampleError(f"caption is not UTF-8: byte {error.start}") from error
    return _checked_caption(caption, max_chars)


def _checked_caption(caption: str, max_chars: int) -> str:
    caption = caption.strip()
    if not caption:
        raise DamagedSampleError("empty caption")
    if len(caption) > max_chars:
        raise DamagedSampleError(f"caption too long: {len(caption)} characters, limit {max_chars}")
    return caption


def decode_record(data: bytes) -> dict[str, Any]:
    """KEY.json as a dictionary. Raises `DamagedSampleError` if it is not a JSON object, holds halves of surrogate
    pairs, or has `captions`, `qa`, `caption_qa` or `conversations` that cannot be used.
    """
    try:
        record = json.loads(data)
        # Half a pair parses as JSON, but is no text: no tokenizer takes it.
        if b"\\ud" in data.lower():
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DamagedSampleError("record holds half a surrogate pair") from error
    except (ValueError, RecursionError) as error:
        raise DamagedSampleError(f"record is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DamagedSampleError(f"record is not a JSON object but a {type(record).__name__}")
    _check_texts(record)
    return record


def _check_texts(record: dict[str, Any]) -> None:
    captions = record.get("captions")
    if captions and not (isinstance(captions, list) and all(isinstance(c, str) and c.strip() for c in captions)):
        raise DamagedSampleError("captions is not a list of texts")
    check_questions(record)
    if record.get("conversations"):
        conversation_pairs(record["conversations"])
