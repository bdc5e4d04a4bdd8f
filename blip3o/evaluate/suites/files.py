"""Reads the files that benchmarks come in, and says by line what is wrong with one. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from blip3o.errors import DataError

Record = dict[str, Any]


def json_lines(data: bytes, where: str) -> list[Record]:
    """The objects of a JSON Lines file, empty lines left out. Raises `DataError` with the number of a bad line."""
    lines = _text(data, where).split("\n")
    return [_object(text, f"{where}, line {number}") for number, text in enumerate(lines, start=1) if text.strip()]


def json_value(data: bytes, where: str) -> object:
    """The value of a JSON file. Raises `DataError` if it is none."""
    try:
        return json.loads(_text(data, where))
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error.msg} in line {error.lineno}") from error


def require(record: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    """Raises `DataError` if a record lacks one of these fields."""
    lacking = [name for name in names if name not in record]
    if lacking:
        raise DataError(f"{where} lacks {', '.join(lacking)}: expected the fields {', '.join(names)}")


def _object(text: str, where: str) -> Record:
    value = json_value(text.encode(), where)
    if not isinstance(value, dict):
        raise DataError(f"{where} is a {type(value).__name__}: expected one JSON object a line")
    return value


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text: {error.reason} at byte {error.start}") from error
