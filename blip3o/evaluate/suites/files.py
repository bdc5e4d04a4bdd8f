"""Reads the files that benchmarks come in, and says by line what is wrong with one. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from blip3o.errors import DataError

Record = dict[str, Any]
SHOWN_CHARS = 80  # of a value, in an error


def json_lines(data: bytes, where: str) -> list[Record]:
    """The objects of a JSON Lines file, empty lines left out. Raises `DataError` with the number of a bad line."""
    lines = read_text(data, where).split("\n")
    return [_object(text, f"{where}, line {number}") for number, text in enumerate(lines, start=1) if text.strip()]


def json_value(data: bytes, where: str) -> object:
    """The value of a JSON file. Raises `DataError` if it is none."""
    try:
        return json.loads(read_text(data, where))
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error.msg} in line {error.lineno}") from error


def require(record: object, names: tuple[str, ...], where: str, *, texts: tuple[str, ...] = ()) -> None:
    """Raises `DataError` if a record is none or lacks one of these fields, or if one of `texts` is no text."""
    if not isinstance(record, Mapping):
        raise DataError(f"{where} is {_shown(record)}: expected an object of the fields {', '.join(names)}")
    lacking = [name for name in names if name not in record]
    if lacking:
        raise DataError(f"{where} lacks {', '.join(lacking)}: expected the fields {', '.join(names)}")
    for name in texts:
        if not isinstance(record[name], str):
            raise DataError(f"{where}: {name} is {_shown(record[name])}, expected a text")


def text_list(value: object, where: str) -> list[str]:
    """A list of texts as it is. Raises `DataError` for anything else, a single text among it."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise DataError(f'{where} is {_shown(value)}, expected a list of texts, as ["a", "b"]')
    return value


def read_text(data: bytes, where: str) -> str:
    """UTF-8 text. Raises `DataError` if it is none."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text: {error.reason} at byte {error.start}; save it as UTF-8") from error


def _object(text: str, where: str) -> Record:
    value = json_value(text.encode(), where)
    if not isinstance(value, dict):
        raise DataError(f"{where} is a {type(value).__name__}: expected one JSON object a line")
    return value


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"
