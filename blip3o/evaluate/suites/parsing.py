"""Parses the files that benchmarks come in, with errors that name the line. Pure.

JSON is read strictly: duplicate keys in one object and NaN are refused, because a lenient parser would score another
benchmark than the one in the file. A byte order mark is not part of the text.
"""

import json
from collections.abc import Mapping
from typing import Any

from blip3o.data.shards.sample import BYTE_ORDER_MARK
from blip3o.errors import DataError, one_line

Record = dict[str, Any]
SHOWN_CHARS = 80  # of a value, in an error
MAX_DEPTH = 32  # of nested lists and objects; benchmarks have 4


def json_lines(data: bytes, where: str) -> list[Record]:
    """The objects of a JSON Lines file, without empty lines. Raises `DataError` with the number of a bad line."""
    # A line may have a byte order mark of its own where files were concatenated.
    lines = [line.removeprefix(BYTE_ORDER_MARK) for line in read_text(data, where).split("\n")]
    return [_object(text, f"{where}, line {number}") for number, text in enumerate(lines, start=1) if text.strip()]


def json_value(data: bytes, where: str) -> object:
    """The value of a JSON file. Raises `DataError` for invalid JSON."""
    return parse_json(read_text(data, where), where)


def parse_json(text: str, where: str) -> object:
    """The value of a JSON text. Raises `DataError` for invalid JSON."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error.msg} in line {error.lineno}") from error
    except ValueError as error:  # from the hooks, or a number with too many digits
        raise DataError(f"{where} cannot be read: {one_line(error)}") from error
    except RecursionError as error:
        raise DataError(f"{where} has values more than {MAX_DEPTH} levels deep: flatten it") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise DataError(f"{where} has values more than {MAX_DEPTH} levels deep: flatten it")
    return value


def parse_reply(data: bytes, where: str = "the reply") -> str:
    """The reply in a file `{"reply": text}`. Raises `DataError` for other content."""
    value = json_value(data, where)
    require(value, ("reply",), where, texts=("reply",))
    assert isinstance(value, dict)  # checked by `require`
    return str(value["reply"])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown(twice)} appears twice in one object: keep one of them")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON: write null, or a number")


def _depth(value: object) -> int:
    """The number of nested levels of lists and objects in a value."""
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth


def require(record: object, names: tuple[str, ...], where: str, *, texts: tuple[str, ...] = ()) -> None:
    """Raises `DataError` if `record` is no object or misses one of `names`, or if one of `texts` is no text."""
    if not isinstance(record, Mapping):
        raise DataError(f"{where} is {shown(record)}: expected an object of the fields {', '.join(names)}")
    missing = [name for name in names if name not in record]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}: expected the fields {', '.join(names)}")
    for name in texts:
        if not isinstance(record[name], str):
            raise DataError(f"{where}: {name} is {shown(record[name])}, expected a text")


def text_id(record: Record, where: str) -> str:
    """A record's `id` as text. Raises `DataError` if it is neither text nor a whole number."""
    if type(record["id"]) not in (str, int):
        raise DataError(f"{where}: id is {shown(record['id'])}, expected a text or a whole number")
    return str(record["id"])


def text_list(value: object, where: str) -> list[str]:
    """A list of texts, unchanged. Raises `DataError` for anything else, including a single text."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise DataError(f'{where} is {shown(value)}, expected a list of texts, as ["a", "b"]')
    return value


def read_text(data: bytes, where: str) -> str:
    """UTF-8 text without its byte order mark. Raises `DataError` for other encodings."""
    try:
        return data.decode().removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text: {error.reason} at byte {error.start}; save it as UTF-8") from error


def _object(text: str, where: str) -> Record:
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise DataError(f"{where} is a {type(value).__name__}: expected one JSON object a line")
    return value


def shown(value: object) -> str:
    """A value as JSON for an error message, truncated if it is long."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"
