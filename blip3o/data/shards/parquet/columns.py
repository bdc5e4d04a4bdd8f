"""Which columns of a Parquet file make a sample: by their types and usual names, or as a recipe asks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import types

from blip3o.config.shards import ColumnsConfig
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.errors import quoted

IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes", "images")
CAPTION_NAMES = ("caption", "text", "txt", "prompt")
# Of the record, those in which captions are looked for (`blip3o.data.shards.sample.decode_words`).
_HOLDERS = {"caption", "captions", "text", "texts", "prompt", "Task1", "conversations", "messages", "json"}
SHOWN = 20  # columns that an error lists


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The columns that a file's samples are made of. `image` is the path of the bytes (`image`, or `image.bytes`), or
    a column of lists; `caption` is "" where the record holds it.
    """

    image: str
    caption: str
    record: tuple[str, ...]


def find_columns(schema: pa.Schema, asked: ColumnsConfig) -> Columns:
    """The columns of a sample. Raises `DamagedSampleError` if one that is asked for is not there, or if no name says
    which holds the image; it lists the columns that are there, and their types.
    """
    named = {field.name: field.type for field in schema}
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise DamagedSampleError(f"column {quoted(twice[0])} is there twice: rename one")
    image = _image(named, asked)
    caption = _caption({name: kind for name, kind in named.items() if name != image}, asked)
    others = [name for name, kind in named.items() if name not in (image, caption) and not _is_plain_image(kind)]
    missing = [name for name in asked.record or () if name not in named]
    if missing:
        raise DamagedSampleError(f"no column {quoted(missing[0])} among {_described(named)}: set columns.record")
    record = tuple(others if asked.record is None else asked.record)
    inner = ".bytes" if types.is_struct(named[image]) else ""
    return Columns(image=f"{image}{inner}", caption=caption, record=record)


def without_captions(schema: pa.Schema, columns: Columns) -> str:
    """What to say of rows without a caption where no column can hold one; "" where one can."""
    if columns.caption or _HOLDERS.intersection(columns.record):
        return ""
    named = {field.name: field.type for field in schema}
    return f": no column {quoted(CAPTION_NAMES[0])} of text among {_described(named)}: set columns.caption"


def _image(named: dict[str, pa.DataType], asked: ColumnsConfig) -> str:
    plain = [name for name, kind in named.items() if _is_plain_image(kind)]
    # Of fixed size are hashes and ids more often than pictures, and lists more often have many pictures than one.
    fixed = [name for name, kind in named.items() if types.is_fixed_size_binary(kind)]
    lists = [name for name, kind in named.items() if is_list(kind) and _is_plain_image(kind.value_type)]
    if asked.image:
        found = _usual([*plain, *fixed, *lists], [asked.image])
    else:
        found = _usual(plain, IMAGE_NAMES) or _only(plain) or _usual([*fixed, *lists], IMAGE_NAMES) or _only(lists)
    if found:
        return found
    texts = [name for name, kind in named.items() if _is_text(kind)]
    paths = _usual(texts, [asked.image] if asked.image else IMAGE_NAMES)
    fix = "set columns.image"
    if paths:
        fix += f"; {quoted(paths)} holds text, and paths are not followed: `blip3o data import` reads such a table"
    elif other := _usual(list(named), [asked.image] if asked.image else IMAGE_NAMES):
        fix = f"write {quoted(other)} as binary, or set columns.image"
    wanted = quoted(asked.image or IMAGE_NAMES[0])
    raise DamagedSampleError(f"no column {wanted} of bytes among {_described(named)}: {fix}")


def _caption(named: dict[str, pa.DataType], asked: ColumnsConfig) -> str:
    # Some writers mark no bytes as text. They count where nothing else can hold a caption.
    raw = [name for name, kind in named.items() if _is_bytes(kind)]
    if not asked.caption:
        found = _usual([name for name, kind in named.items() if _is_text(kind)], CAPTION_NAMES)
        return found or ("" if _HOLDERS.intersection(named).difference(raw) else _usual(raw, CAPTION_NAMES))
    found = _usual([name for name, kind in named.items() if _holds_text(kind)], [asked.caption])
    found = found or _usual(raw, [asked.caption])
    if not found:
        raise DamagedSampleError(
            f"no column {quoted(asked.caption)} of text among {_described(named)}: set columns.caption"
        )
    return found


def _described(named: dict[str, pa.DataType]) -> str:
    """Names and types of columns, on one line."""
    shown = [f"{quoted(name)[1:-1]} ({str(kind)[:60]})" for name, kind in list(named.items())[:SHOWN]]
    return ", ".join(shown) + (f" and {len(named) - SHOWN} more" if len(named) > SHOWN else "")


def _usual(names: Sequence[str], usual: Sequence[str]) -> str:
    """The name that comes first among the usual ones, as it is written or else in any case; "" if there is none."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((name if name in names else by_lower[name.lower()] for name in usual if name.lower() in by_lower), "")


def _only(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ""


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists, of whatever layout."""
    return (
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _holds_text(kind: pa.DataType) -> bool:
    """Text, or what can be read as it: text by number, and lists of texts."""
    return _is_text(kind.value_type if is_list(kind) or types.is_dictionary(kind) else kind)


def _is_plain_image(kind: pa.DataType) -> bool:
    """Bytes, or structs with a field `bytes` of them, as Hugging Face stores images."""
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)
    return _is_bytes(kind)
