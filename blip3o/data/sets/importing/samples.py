"""An item as a sample: its picture and text are read and checked as indexing would."""

import json
import posixpath
from collections.abc import Mapping
from typing import Any

from blip3o.config.shards import LimitsConfig
from blip3o.data.sets import writer
from blip3o.data.sets.importing.encodings import NUL_BYTES, as_utf8
from blip3o.data.sets.importing.inline import content_name
from blip3o.data.sets.importing.items import Item, read_file, readable_name
from blip3o.data.sets.importing.pictures import Picture, found_instead, stored_picture
from blip3o.data.sets.importing.splits import Split
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.sample import NO_CAPTION, Stored, decode_caption, decode_record, decode_words
from blip3o.data.text.questions import QuestionError


def sample_of(number: int, item: Item, split: Split, limits: LimitsConfig) -> writer.Sample:
    """The sample of an item, its number from 0 as key, on its side of the split.

    Raises `DamagedSampleError` if it cannot be used, `StorageError` if a store does not answer.
    """
    if item.fault:
        raise DamagedSampleError(item.fault)
    data = _image_bytes(item)
    try:
        caption, record = _texts(item)
        words = decode_words(
            Stored(image=data, caption=caption, record=record), max_caption_chars=limits.max_caption_chars
        )
        picture = stored_picture(data, item.name, max_pixels=limits.max_pixels)
        whole = _record(item, words.record, words.caption, picture, split)
        decode_caption(whole["captions"][0].encode(), max_chars=limits.max_caption_chars)
        writer.record_bytes(whole)
    except QuestionError as found:
        where = posixpath.basename(item.record_file) if item.record_file else item.name
        raise DamagedSampleError(f"{found.reason} ({where})") from found
    except DamagedSampleError as found:
        # A fault of its own record says more than a file next to the picture.
        own_fault = item.record_file is not None and found.reason != NO_CAPTION
        if not found.reason.startswith(NO_CAPTION) or not item.hint or own_fault:
            raise
        raise DamagedSampleError(f"{NO_CAPTION}: {item.hint}") from found
    except RecursionError as error:
        raise DamagedSampleError("record is nested too deeply") from error
    return writer.Sample(key=f"{number:07d}", image=picture.data, ext=picture.ext, record=whole)


def captions_of(item: Item, limits: LimitsConfig) -> list[str]:
    """The captions that an item's sample will have; none if the item has a fault.

    Raises `StorageError` if a store does not answer.
    """
    try:
        caption, record = _texts(item)
        words = decode_words(
            Stored(image=b"", caption=caption, record=record), max_caption_chars=limits.max_caption_chars
        )
    except (DamagedSampleError, RecursionError):  # `sample_of` says so, and writes no sample
        return []
    return every_caption({**words.record, "captions": _captions(words.record, words.caption)})


def every_caption(record: Mapping[str, Any]) -> list[str]:
    """The `captions` of a record that is stored, and its `caption`, as which it is read, if that is another text."""
    captions, caption = record["captions"], record.get("caption")
    if isinstance(caption, str) and caption.strip() and caption not in captions:
        return [*captions, caption]
    return list(captions)


def _captions(record: Mapping[str, Any], caption: str) -> list[str]:
    return record.get("captions") or [caption]


def _image_bytes(item: Item) -> bytes:
    if item.data is not None:
        return item.data
    faults = []
    for uri in (item.image, *item.others):
        try:
            return read_file(uri, "image")
        except DamagedSampleError as found:
            faults.append(found)
    raise faults[0]


def _texts(item: Item) -> tuple[bytes | None, bytes]:
    """The caption, if it is not in the record, and the record."""
    # Half a surrogate pair is found where the bytes are decoded again.
    caption = None if item.caption is None else item.caption.encode("utf-8", "surrogatepass")
    if item.caption_file is not None:
        caption = _sidecar(item.caption_file, "caption")
    if item.record_file is None:
        return caption, json.dumps(item.record, default=_plain).encode()
    record = _sidecar(item.record_file, "record")
    return caption, json.dumps(item.record | decode_record(record), default=_plain).encode() if item.record else record


def _plain(value: object) -> str | None:
    """What JSON cannot hold as text; bytes are null."""
    return None if isinstance(value, bytes) else str(value)


def _sidecar(uri: str, what: str) -> bytes:
    data = read_file(uri, what)
    if data and (instead := found_instead(data, is_text=True)):
        raise DamagedSampleError(f"undecodable {what}: {instead}")
    text = as_utf8(data)
    if b"\0" in text[:64]:
        raise DamagedSampleError(f"undecodable {what}: {NUL_BYTES}: save it as UTF-8")
    return text


def _record(item: Item, theirs: dict[str, Any], caption: str, picture: Picture, split: Split) -> dict[str, Any]:
    """The record that is stored: the source's, with our fields; its own values under those names are kept."""
    name = readable_name(item.name)
    key = name if item.data is None else content_name(item.data)  # a table may use one name for all its pictures
    captions = _captions(theirs, caption)
    ours: dict[str, Any] = {
        "source": "import",
        "split": split.side(key, captions),
        "captions": captions,
        "file": name,
    }
    if split.groups is not None:
        ours["grouped_by"] = "caption"
    if picture.converted:
        ours["converted"] = {"format": picture.format, "frames": picture.frames}
    kept = {key: theirs[key] for key in ours if key != "captions" and key in theirs}
    return {**theirs, **ours, **({"original": kept} if kept else {})}
