"""A row of a table into an item: its picture, its caption, and everything else as the record.

Columns are known by their names in any case. The picture is a path or URI, a data URL, or an object with `bytes` or
`path`, as Hugging Face writes it; the conversation of a row may show it too.
"""

import json
import posixpath
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blip3o import storage
from blip3o.data.images.containers import image_format
from blip3o.data.sets.importing.columns import CAPTION_COLUMNS, LISTS, TALKS, TableOptions
from blip3o.data.sets.importing.csv_rows import SURPLUS
from blip3o.data.sets.importing.inline import (
    bytes_of_base64,
    bytes_of_data_url,
    content_name,
    is_data_url,
    is_picture_in_base64,
)
from blip3o.data.sets.importing.items import Item
from blip3o.data.sets.importing.json_rows import Repeated
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.text.conversations import conversation_pairs, image_sources, without_sources
from blip3o.data.text.questions import QuestionError, check_questions

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def row_item(table: str, number: int, row: object, options: TableOptions) -> Item:
    """The item of a row, `number` from 1, of the table at a URI; one with a fault where it makes no sample."""
    try:
        return _item(table, number, row, options)
    except DamagedSampleError as found:
        return Item(name=f"row {number}", image=table, fault=found.reason)


def _item(table: str, number: int, row: object, options: TableOptions) -> Item:
    if not isinstance(row, dict):
        raise DamagedSampleError(f"row is no sample: row {number} is a {type(row).__name__}, not an object of columns")
    if isinstance(row, Repeated):
        raise DamagedSampleError(f"row gives a key twice: row {number} has '{row.key}' more than once")
    column, picture = _picture(number, row, options)
    if SURPLUS in row:
        raise DamagedSampleError(
            f"row has more values than columns: row {number}, put quotes around values that hold the delimiter"
        )
    record = {key: _as_text(value) for key, value in row.items() if key != column}
    _read_lists(record)
    try:
        check_questions(record)
    except QuestionError as found:
        raise DamagedSampleError(f"{found.reason} (row {number})") from found
    caption = _caption(record, options)
    _read_messages(record, needed=caption is None)
    first, *others = [table]
    if picture.data is None:
        first, *others = (storage.within(posixpath.dirname(table), path) for path in _spellings(picture.name))
    return Item(
        name=picture.name,
        image=first,
        others=tuple(others),
        data=picture.data,
        caption=caption,
        record=record,
        hint=_hint(number, row, options),
    )


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """A picture by its path, or with its bytes."""

    name: str
    data: bytes | None = None


def _by_name(row: Mapping[Any, Any]) -> dict[str, str]:
    """The columns of a row by their names in lower case; of several, the one that is spelled so."""
    columns = [column for column in row if isinstance(column, str)]
    lowered = {column.strip().lower(): column for column in reversed(columns)}
    return lowered | {column: column for column in columns if column in lowered}


def _picture(number: int, row: Mapping[Any, Any], options: TableOptions) -> tuple[str | None, _Picture]:
    """The column that holds the picture, and the picture; no column where the conversation shows it."""
    columns, faults = _by_name(row), []
    for column in (columns[name] for name in options.image_names if name in columns):
        if row[column] in (None, "", [], {}):
            continue
        try:
            return column, _one(row[column], f"row {number}", column)
        except DamagedSampleError as found:
            faults.append(found)
    for talk in (row.get(name) for name in TALKS):
        if not faults and (sources := image_sources(talk)):
            return None, _one(sources, f"row {number}", "messages")
    if faults:
        raise faults[0]
    raise DamagedSampleError(
        f"row names no image: row {number} has nothing in any of {', '.join(options.image_names[:7])} (or "
        f"--image-column), its columns are {_keys(row)}"
    )


def _one(value: object, where: str, column: str) -> _Picture:
    if isinstance(value, list):
        if (data := _bytes_of(value)) is not None:
            return _one(data, where, column)
        if isinstance(_first_leaf(value), (int, float)):
            raise DamagedSampleError(f"row names no image: {where} has a list of numbers in '{column}', not a path")
        if len(value) != 1:
            raise DamagedSampleError(
                f"row has several images: {where} has {len(value)} images in '{column}', a sample has one"
            )
        return _one(value[0], where, column)
    if isinstance(value, dict):
        return _of_object(value, where, column)
    if isinstance(value, str) and value.strip():
        return _of_text(value)
    if isinstance(value, bytes):
        path = _decoded(value) if image_format(value) is None else None
        if isinstance(path, str) and path.isprintable() and path.strip():
            return _of_text(path)
        return _Picture(name=content_name(value), data=value)
    found = f"{type(value).__name__} ({value!r:.40})"
    raise DamagedSampleError(f"row names no image: {where} has a {found} in '{column}', not a path")


def _first_leaf(value: object) -> object:
    while isinstance(value, list) and value:
        value = value[0]
    return value


def _bytes_of(value: list[Any]) -> bytes | None:
    """A picture whose bytes are listed as numbers; None for any other list."""
    try:
        data = bytes(value)
    except (TypeError, ValueError):
        return None
    return data if image_format(data) else None


def _as_text(value: object) -> object:
    """Bytes as the text that they are, also in lists: not every writer of Parquet marks them so. Others as they are."""
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    return _decoded(value)


def _decoded(value: object) -> object:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _of_object(value: Mapping[str, Any], where: str, column: str) -> _Picture:
    """As Hugging Face writes a picture (`bytes`, `path`), OpenAI (`url`), or Anthropic (`data`)."""
    path = next((value[key] for key in ("path", "file_name", "filename", "url") if value.get(key)), None)
    data = value.get("bytes") or value.get("data")
    if isinstance(data, str):
        data = bytes_of_base64(data)
    if isinstance(data, bytes):
        return _Picture(name=path if isinstance(path, str) else content_name(data), data=data)
    if path is None:
        raise DamagedSampleError(
            f"row names no image: {where} has an object with {_keys(value)} in '{column}', not a path or bytes"
        )
    return _one(path, where, column)


def _of_text(value: str) -> _Picture:
    text = value.strip()
    if is_data_url(text):
        data = bytes_of_data_url(text)
        return _Picture(name=content_name(data), data=data)
    if re.match("https?://", text, re.IGNORECASE):
        raise DamagedSampleError(f"not downloaded: {storage.shown(text)[:200]}: download it, and name the file")
    if _DRIVE.match(text):
        raise DamagedSampleError(
            f"unusable image path: {storage.shown(text)[:200]} is of a Windows drive: write it relative to the table"
        )
    if is_picture_in_base64(text):
        data = bytes_of_base64(text)
        return _Picture(name=content_name(data), data=data)
    return _Picture(name=value)


def _spellings(path: str) -> list[str]:
    """A path as it stands, then as other systems would write it."""
    slashed = path.strip().replace("\\", "/")
    return list(dict.fromkeys([path, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))]))


def _read_lists(record: dict[Any, Any]) -> None:
    """Lists that a CSV holds as JSON; one caption where several could be."""
    for name in LISTS:
        if name in record:
            record[name] = _listed(record[name])
    if isinstance(record.get("captions"), str):
        record["captions"] = [record["captions"]] if record["captions"].strip() else []


def _listed(value: object) -> object:
    """A list that is written as JSON; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):  # a text, then; where it may be none, whoever reads the record says so
        return value


def _caption(record: dict[Any, Any], options: TableOptions) -> str | None:
    """The caption, or None where the record itself has one; of several in a list, all become the record's.

    A text in a column of captions comes first, then what the record has of its own, then lists, numbers, and columns
    that only may hold captions.
    """
    columns = _by_name(record)
    usual = [columns[name] for name in options.caption_names if name in columns]
    likely = [column for column in usual if options.caption_column or column.lower() in CAPTION_COLUMNS]
    texts = [value for value in map(record.get, likely) if isinstance(value, str) and value.strip()]
    if texts:
        return str(texts[0])
    task = record.get("Task1")
    if record.get("captions") or (isinstance(task, dict) and task.get("Caption")) or any(map(record.get, TALKS)):
        return None
    blank = any(isinstance(record[column], str) for column in likely)
    return next((caption for column in usual if (caption := _text(record, column))), "" if blank else None)


def _text(record: dict[Any, Any], column: str) -> str:
    """The text of a column, empty where there is none. Several become the record's captions."""
    value = record[column]
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        texts = [text for text in value if text.strip()]
        if texts:
            del record[column]
            record["captions"] = texts
        return texts[0] if texts else ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value.strip() else ""


def _read_messages(record: dict[Any, Any], *, needed: bool) -> None:
    """`messages` that are a conversation become the record's; pictures in its parts are named once, by the row."""
    messages = _listed(record.get("messages"))
    if messages and not record.get("conversations"):
        try:
            conversation_pairs(messages)
            record["conversations"] = messages
            del record["messages"]
        except DamagedSampleError:
            if needed:
                raise
    if image_sources(record.get("conversations")):
        record["conversations"] = without_sources(record["conversations"])


def _hint(number: int, row: Mapping[Any, Any], options: TableOptions) -> str:
    """Why no caption was found."""
    columns = _by_name(row)
    for column in (columns[name] for name in options.caption_names if name in columns):
        if row[column] is not None:
            return f"row {number} has a {type(row[column]).__name__} in '{column}', not a text"
    names = ", ".join(options.caption_names[:3])
    return f"row {number} has nothing in any of {names} (or --caption-column), its columns are {_keys(row)}"


def _keys(row: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, list(row)[:12])) or "none"
