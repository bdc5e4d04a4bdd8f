"""Samples in Parquet files: which columns make one, and a row group's bytes into samples.

A file is a list of row groups; a row's ordinal counts through all of them. A row group stands or falls whole: with page
checksums in the file a flipped byte is always seen, without them compressed or variable-length values can pass a flip
on to others of their page, which are then mostly undecodable. Where a row group lies is seen by what pyarrow reads of
it: asking its metadata for a column ends the process if the footer is damaged (pyarrow 26, found by flipping bits).
"""

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blip3o.config.shards import MAX_CAPTION_CHARS, ColumnsConfig
from blip3o.data.damage import DamagedSampleError
from blip3o.data.sample import MAX_MEMBER_BYTES, Stored
from blip3o.errors import StorageError
from blip3o.types import Member

SUFFIX = ".parquet"
# A row group is held in memory whole, decompressed.
MAX_GROUP_BYTES = 2**30
# Of a file; a row costs its place in every pass over the index even where it holds nothing.
MAX_ROWS = 2**20
IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")
CAPTION_NAMES = ("caption", "text", "txt", "prompt")
RECORD_NAME = "json"
_ARROW_SCHEMA = b"ARROW:schema"

Read = Callable[[int, int], bytes]  # (offset, size) → the bytes there, fewer where the file ends
DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The columns that a file's samples are made of. `image` is the path of the bytes (`image`, or `image.bytes`);
    `caption` is "" where the record holds it.
    """

    image: str
    caption: str
    record: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowGroup:
    """Rows `first … first + rows − 1` of a file."""

    number: int
    first: int
    rows: int


class Spanned:
    """A function that reads ranges, and from where to where it has read."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._start, self._end = 0, 0

    def __call__(self, offset: int, size: int) -> bytes:
        """Reads as the function does."""
        self._start = min(self._start, offset) if self._end else offset
        self._end = max(self._end, offset + size)
        return self._read(offset, size)

    def member(self) -> Member:
        """The byte range from the first to the last byte that was asked for; empty if none was."""
        return Member(ext=SUFFIX[1:], offset=self._start, size=self._end - self._start)


class ParquetShard:
    """One file: its columns by name and its row groups. `read` reads ranges of it; `size` is in bytes."""

    def __init__(self, read: Read, size: int) -> None:
        """Reads the footer. Raises `DamagedSampleError` if it is none, `StorageError` as `read` does."""
        self._size = size
        self._metadata = _guarded(lambda file: pq.read_metadata(file), _Ranges(read, size), "not a Parquet file")
        self.schema = _guarded(lambda _: self._metadata.schema.to_arrow_schema(), _Ranges(read, size), "bad footer")
        self._require_agreement()
        self.groups = self._checked_groups()

    def _require_agreement(self) -> None:
        """A footer has no checksum, but what Arrow writes names its columns twice."""
        kept = (self._metadata.metadata or {}).get(_ARROW_SCHEMA)
        if kept is None:
            return
        try:
            stated = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(kept, validate=True)))
            agree = _names(stated) == _names(self.schema)
        except DAMAGE as error:
            raise DamagedSampleError("bad footer: its Arrow schema cannot be read") from error
        if not agree:
            raise DamagedSampleError("bad footer: its two lists of columns differ")

    def _checked_groups(self) -> tuple[RowGroup, ...]:
        groups: list[RowGroup] = []
        first = 0
        for number in range(self._metadata.num_row_groups):
            rows = self._metadata.row_group(number).num_rows
            if not 0 <= rows <= MAX_ROWS - first:
                raise DamagedSampleError(f"bad footer: row group {number} has {rows} rows")
            groups.append(RowGroup(number=number, first=first, rows=rows))
            first += rows
        if first != self._metadata.num_rows:
            raise DamagedSampleError(f"bad footer: {self._metadata.num_rows} rows, {first} in row groups")
        return tuple(groups)

    def columns(self, asked: ColumnsConfig) -> Columns:
        """The columns of a sample. Raises `DamagedSampleError` if one that is asked for is not there, or if no name
        says which holds the image.
        """
        named = {field.name: field.type for field in self.schema}
        twice = [name for name, count in Counter(self.schema.names).items() if count > 1]
        if twice:
            raise DamagedSampleError(f"column '{twice[0]}' is there twice: rename one")
        images = [name for name, kind in named.items() if _bytes_path(name, kind)]
        image = asked.image or _usual(images, IMAGE_NAMES) or (images[0] if len(images) == 1 else "")
        if image not in images:
            raise DamagedSampleError(
                f"no column '{asked.image or IMAGE_NAMES[0]}' of bytes among {', '.join(named)}: set columns.image"
            )
        texts = [name for name, kind in named.items() if _is_text(kind)]
        caption = asked.caption or _usual(texts, CAPTION_NAMES)
        if asked.caption and caption not in texts:
            raise DamagedSampleError(f"no column '{caption}' of text among {', '.join(named)}: set columns.caption")
        others = [name for name, kind in named.items() if name not in (image, caption) and not _bytes_path(name, kind)]
        lacking = [name for name in asked.record or () if name not in named]
        if lacking:
            raise DamagedSampleError(f"no column '{lacking[0]}' among {', '.join(named)}: set columns.record")
        record = tuple(others if asked.record is None else asked.record)
        return Columns(image=_bytes_path(image, named[image]), caption=caption, record=record)

    def group_of(self, row: int) -> RowGroup:
        """The row group of a row. Raises `DamagedSampleError` if the file has fewer rows."""
        for group in self.groups:
            if row < group.first + group.rows:
                return group
        raise DamagedSampleError(f"the file has no row {row}")

    def read_group(self, read: Read, group: RowGroup, columns: Columns) -> "GroupRows":
        """All samples of a row group. Nothing but what lies in it is read.

        Raises `DamagedSampleError` if it cannot be decoded, `StorageError` as `read` does.
        """
        size = self._metadata.row_group(group.number).total_byte_size
        if size > MAX_GROUP_BYTES:
            raise DamagedSampleError(f"row group of {size} bytes, limit {MAX_GROUP_BYTES}: write smaller ones")

        def decode(file: _Ranges) -> pa.Table:
            source = pq.ParquetFile(file, metadata=self._metadata, page_checksum_verification=True)
            names = [columns.image, *([columns.caption] if columns.caption else []), *columns.record]
            # A value that repeats is stored once and decoded often: few bytes can become any number. So only as many
            # rows are decoded at a time as are sure to stay within the limit.
            step = max(MAX_GROUP_BYTES // max(size, 1), 1)
            parts, decoded = [], 0
            for batch in source.iter_batches(step, row_groups=[group.number], columns=names, use_threads=False):
                parts.append(batch)
                decoded += batch.nbytes
                if decoded > MAX_GROUP_BYTES:
                    raise DamagedSampleError(f"row group of over {MAX_GROUP_BYTES} bytes decoded: write smaller ones")
            return pa.Table.from_batches(parts)

        table = _guarded(decode, _Ranges(read, self._size), "bad row group")
        if table.num_rows != group.rows:
            raise DamagedSampleError(f"bad row group: {table.num_rows} rows of {group.rows}")
        return GroupRows(table, columns)


class GroupRows:
    """The decoded samples of one row group, by their place in it; `nbytes` is the memory they take."""

    def __init__(self, table: pa.Table, columns: Columns) -> None:
        whole = columns.image in table.column_names  # a name may have dots in it
        name, _, inner = (columns.image, "", "") if whole else columns.image.rpartition(".")
        image = pa.chunked_array(table.column(name))
        self._image = pa.chunked_array([chunk.field(inner) for chunk in image.chunks]) if inner else image
        self._caption = _as_bytes(table.column(columns.caption)) if columns.caption else None
        self._record = table.select(list(columns.record)) if columns.record else None
        self.nbytes: int = table.nbytes

    def stored(self, place: int) -> Stored:
        """The bytes of one sample; the record as JSON. Raises `DamagedSampleError` for what is lacking or no text."""
        image = self._image[place].as_py()
        if image is None:
            raise DamagedSampleError("missing image")
        if len(image) > MAX_MEMBER_BYTES:
            raise DamagedSampleError(f"member too large: image of {len(image)} bytes, limit {MAX_MEMBER_BYTES}")
        caption = self._caption[place].as_py() if self._caption is not None else None
        record = self._record_bytes(place)
        if caption is None and record is None:
            raise DamagedSampleError("missing caption")
        if caption is not None and len(caption) > 4 * MAX_CAPTION_CHARS:
            raise DamagedSampleError(f"caption too long: {len(caption)} bytes, limit {MAX_CAPTION_CHARS} characters")
        return Stored(image=bytes(image), caption=caption, record=record)

    def _record_bytes(self, place: int) -> bytes | None:
        if self._record is None:
            return None
        try:
            values: dict[str, Any] = {
                name: column[place].as_py()
                for name, column in zip(self._record.column_names, self._record.columns, strict=True)
            }
        except UnicodeDecodeError as error:
            raise DamagedSampleError("record is not UTF-8") from error
        except DAMAGE as error:
            raise DamagedSampleError(f"record has a value that cannot be read: {error}") from error
        whole = values.pop(RECORD_NAME, None)
        return json.dumps(values | _parsed(whole), default=str).encode()


def _parsed(whole: object) -> dict[str, Any]:
    """A column `json`, as WebDataset names it: an object as text, or a struct."""
    if isinstance(whole, str):
        try:
            whole = json.loads(whole)
        except (ValueError, RecursionError) as error:
            raise DamagedSampleError(f"record is not JSON: {error}") from error
    if whole is None:
        return {}
    if not isinstance(whole, dict):
        raise DamagedSampleError(f"record is not a JSON object but a {type(whole).__name__}")
    return whole


class _Ranges(io.RawIOBase):
    """A function that reads ranges, as the file object that pyarrow wants. `error` is the store's, if it failed."""

    def __init__(self, read: Read, size: int) -> None:
        super().__init__()
        self._read, self._size, self._at = read, size, 0
        self.error: StorageError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        size = self._size - self._at if size < 0 else size
        if self._at < 0:
            raise OSError(f"asked for bytes at {self._at}")
        try:
            data = self._read(self._at, min(size, max(self._size - self._at, 0)))
        except StorageError as error:
            self.error = error
            raise
        self._at += len(data)
        return data


def _guarded(action: Callable[[_Ranges], Any], file: _Ranges, what: str) -> Any:  # noqa: ANN401 - what the action gives
    """Turns what pyarrow says of damage into ours; errors of the store pass."""
    try:
        return action(file)
    except DAMAGE as error:
        if file.error is not None:
            raise file.error from error
        raise DamagedSampleError(f"{what}: {' '.join(str(error).split())[:200]}") from error


def _names(fields: Iterable[pa.Field]) -> list[object]:
    """Names of columns and, where these hold structs, of their fields."""
    return [(field.name, _inner_names(field.type)) for field in fields]


def _inner_names(kind: pa.DataType) -> list[object]:
    if pa.types.is_struct(kind):
        return _names(kind.field(number) for number in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _inner_names(kind.value_type)
    return []


def _usual(names: Sequence[str], usual: Sequence[str]) -> str:
    """The name that comes first among the usual ones, in any case; "" if there is none."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in usual if name in by_lower), "")


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _bytes_path(name: str, kind: pa.DataType) -> str:
    """Where a column's bytes are: itself, or the field `bytes` of structs (as Hugging Face stores images); else ""."""
    if _is_bytes(kind):
        return name
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type):
        return f"{name}.bytes"
    return ""


def _as_bytes(text: pa.ChunkedArray) -> pa.ChunkedArray:
    return text.cast(pa.large_binary() if pa.types.is_large_string(text.type) else pa.binary())
