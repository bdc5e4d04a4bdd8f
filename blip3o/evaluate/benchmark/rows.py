"""The JSON files of an evaluation: written whole, and checked when they are read."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

from blip3o import storage
from blip3o.errors import DataError, one_line
from blip3o.evaluate.records import Judge
from blip3o.evaluate.suites.parsing import json_lines, json_value, require, shown

Rows = list[dict[str, Any]]
T = TypeVar("T")


def json_bytes(value: object, *, indent: int | None = None) -> bytes:
    """A value as JSON in UTF-8. Half of a surrogate pair, which UTF-8 cannot contain, is written as a JSON escape."""
    return json.dumps(value, indent=indent, ensure_ascii=False).encode(errors="backslashreplace")


def write_json(uri: str, value: Mapping[str, Any]) -> None:
    """Writes a JSON object atomically."""
    storage.write_bytes(uri, json_bytes(value, indent=1))


def read_json(uri: str) -> dict[str, Any]:
    """The JSON object of a file. Raises `DataError` for other content, `MissingFileError` where there is no file."""
    value = json_value(storage.read_bytes(uri), uri)
    if not isinstance(value, dict):
        raise DataError(f"{uri} holds no JSON object: remove it, and run the stage that writes it")
    return value


def write_rows(uri: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON Lines atomically."""
    storage.write_bytes(uri, b"".join(json_bytes(row) + b"\n" for row in rows))


def read_rows(uri: str) -> Rows:
    """The rows of a JSON Lines file. Raises `DataError` for a line that is no JSON object."""
    return json_lines(storage.read_bytes(uri), uri)


def read_judgement_rows(uri: str) -> Rows:
    """The rows of a judgements.jsonl. Raises `DataError` for a row that is no judgement."""
    rows = read_rows(uri)
    for number, row in enumerate(rows, start=1):
        where = f"{uri}, record {number}"
        require(row, ("key", "sample", "value", "sha256", "judge", "fault"), where, texts=("key", "sha256", "fault"))
        if type(row["sample"]) is not int:  # a bool is an int to isinstance
            raise DataError(f"{where}: sample is {shown(row['sample'])}, expected a number")
    return rows


def judge_of(row: Mapping[str, Any], where: str) -> Judge:
    """The judge of a row. Raises `DataError` if it names none."""
    require(row, ("id", "version"), where)
    return Judge(**{field.name: row[field.name] for field in fields(Judge) if field.name in row})


def from_row(kind: Callable[..., T], row: Mapping[str, Any], uri: str) -> T:
    """A row of the file `uri` as a dataclass. Raises `DataError` for other fields, or values of another type."""
    try:
        made = kind(**row)
    except TypeError as error:
        raise DataError(f"{uri} has a row of another kind ({one_line(error)}): give another --out") from error
    for field in fields(made):  # type: ignore[arg-type]
        value = getattr(made, field.name)
        if not _fits(value, field.type):
            raise DataError(
                f"{uri} has a row whose {field.name} is {shown(value)}: give another --out, or restore the file"
            )
    return made


def _fits(value: object, kind: Any) -> bool:  # noqa: ANN401
    """Whether a JSON value may be the value of a field; fields of types other than these are not checked."""
    if get_origin(kind) is UnionType:
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is Mapping:
        return isinstance(value, Mapping)
    return type(value) is kind if kind in (str, int, NoneType) else True
