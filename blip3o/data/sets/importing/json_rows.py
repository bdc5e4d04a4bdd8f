"""Rows of a JSON file, whatever its ending: a list, one object after another (JSON Lines), or an object that holds one.

Known objects: one list of objects under any name, COCO's captions (`images`, `annotations`), records or captions by
the path of their picture, and a data frame by columns.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from blip3o.data.sets.importing.pictures import PICTURE_EXTENSIONS, extension

_SPACE = " \t\r\n\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029\ufeff"
_PATH = "file_name"


class Repeated(dict[str, Any]):
    """An object of JSON that gives a key more than once; `key` is the first such key."""

    key = ""


def json_rows(text: str, *, is_row: Callable[[dict[str, Any]], bool]) -> list[Any]:
    """The rows of a JSON text. A single object that `is_row` is one; NaN and infinities are read as null.

    Raises `ValueError` if the text is not JSON, with the row and the line, or holds no rows.
    """
    values = _values(text)
    if len(values) != 1:
        return values
    (value,) = values
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not a list of samples")
    rows = _known(value)
    if rows is None:
        rows = [value] if is_row(value) else _only_list(value)
    return rows


def _values(text: str) -> list[Any]:
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=lambda _: None)
    values: list[Any] = []
    at = _after_space(text, 0)
    while at < len(text):
        try:
            value, end = decoder.raw_decode(text, at)
        except ValueError as error:
            raise ValueError(f"row {len(values) + 1}: {error}") from error
        values.append(value)
        at = _after_space(text, end)
    return values


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    repeated = Repeated(found)
    repeated.key = next(name for name in names if names.count(name) > 1)
    return repeated


def _known(whole: dict[str, Any]) -> list[Any] | None:
    """The rows of an object of a known form: COCO's, by the path of a picture, or of a data frame; else None."""
    if isinstance(whole.get("images"), list) and isinstance(whole.get("annotations"), list):
        return _coco_rows(whole["images"], whole["annotations"])
    if whole and all(extension(name) in PICTURE_EXTENSIONS for name in whole):
        return [{_PATH: name, **(of if isinstance(of, dict) else {"caption": of})} for name, of in whole.items()]
    columns = list(whole.values())
    if columns and all(isinstance(one, dict) and one and [*one] == [*columns[0]] for one in columns):
        if all(index.isdigit() for index in columns[0]):  # as pandas writes `{column: {index: value}}`
            return [{name: column[index] for name, column in whole.items()} for index in columns[0]]
    return None


def _only_list(whole: dict[str, Any]) -> list[Any]:
    lists = [name for name, value in whole.items() if isinstance(value, list) and _are_objects(value)]
    if len(lists) == 1:
        return list(whole[lists[0]])
    keys = ", ".join(map(repr, list(whole)[:12])) or "nothing"
    several = f", {len(lists)} of them lists of objects" if lists else ""
    raise ValueError(f"it holds a dict, not a list of samples: found {keys}{several}")


def _are_objects(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) for value in values)


def _coco_rows(images: list[Any], annotations: list[Any]) -> list[Any]:
    """COCO's images, each with all of its captions."""
    captions: dict[Any, list[Any]] = defaultdict(list)
    for annotation in annotations:
        if isinstance(annotation, dict) and "caption" in annotation:
            captions[str(annotation.get("image_id"))].append(annotation["caption"])
    if annotations and not captions:
        raise ValueError("its annotations have no 'caption': of COCO's files those of captions are read")

    rows: list[Any] = []
    for image in images:
        said = captions.pop(str(image.get("id")), []) if isinstance(image, dict) else []
        rows.append({**image, "captions": said} if said else image)
    return [*rows, *({"image_id": number, "captions": said} for number, said in captions.items())]
