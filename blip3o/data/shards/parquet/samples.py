"""Samples in Parquet files: the bytes of a row group to samples. `parquet.columns` says which columns make one.

A file is a list of row groups; a row's ordinal counts through all of them. A row group is good or bad as a whole: with
page checksums in the file a flipped byte is always seen, without them compressed or variable-length values can pass a
flip on to others of their page, which are then mostly undecodable. Where a row group lies is seen by what pyarrow reads
of it: asking its metadata for a column ends the process if the footer is damaged (pyarrow 26, found by flipping bits).
"""

import base64
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blip3o.config.shards import MAX_CAPTION_CHARS, ColumnsConfig
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.foreign_files import HEAD_BYTES, describe_foreign_file
from blip3o.data.shards.parquet.columns import Columns, find_columns, is_list
from blip3o.data.shards.sample import MAX_MEMBER_BYTES, Stored
from blip3o.errors import StorageError, one_line
from blip3o.types import Member

SUFFIX = ".parquet"
# A row group is held in memory whole, decompressed.
MAX_GROUP_BYTES = 2**30
# Of a file; a row costs its place in every pass over the index even where it holds nothing.
MAX_ROWS = 2**20
RECORD_NAME = "json"
_ARROW_SCHEMA = b"ARROW:schema"

Read = Callable[[int, int], bytes]  # (offset, size) → the bytes there, fewer where the file ends
DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError)


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
        try:
            self._metadata = _guarded(lambda file: pq.read_metadata(file), _Ranges(read, size), "not a Parquet file")
        except DamagedSampleError as damage:
            what = describe_foreign_file(read(0, min(size, HEAD_BYTES)), size=size)
            if not what:
                raise
            raise DamagedSampleError(f"not a Parquet file: it {what}") from damage
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
            if rows < 0:
                raise DamagedSampleError(f"bad footer: row group {number} has {rows} rows")
            if rows > MAX_ROWS - first:
                raise DamagedSampleError(f"too many rows: over {MAX_ROWS} by row group {number}, write smaller files")
            groups.append(RowGroup(number=number, first=first, rows=rows))
            first += rows
        if first != self._metadata.num_rows:
            raise DamagedSampleError(f"bad footer: {self._metadata.num_rows} rows, {first} in row groups")
        return tuple(groups)

    @property
    def rows(self) -> int:
        """Rows of all groups."""
        return sum(group.rows for group in self.groups)

    def columns(self, asked: ColumnsConfig) -> Columns:
        """The columns of a sample. Raises `DamagedSampleError` as `find_columns` does."""
        return find_columns(self.schema, asked)

    def group_of(self, row: int) -> RowGroup:
        """The row group of a row. Raises `DamagedSampleError` if the file has fewer rows."""
        for group in self.groups:
            if row < group.first + group.rows:
                return group
        raise DamagedSampleError(f"the file has no row {row}")

    def read_group(self, read: Read, group: RowGroup, columns: Columns) -> "GroupRows":
        """All samples of a row group. Reads nothing else.

        Raises `DamagedSampleError` if it cannot be decoded, `StorageError` as `read` does.
        """
        size = self._metadata.row_group(group.number).total_byte_size
        if size > MAX_GROUP_BYTES:
            raise DamagedSampleError(f"row group of {size} bytes, limit {MAX_GROUP_BYTES}: write smaller ones")

        def decode(file: _Ranges) -> "GroupRows":
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
            return GroupRows(pa.Table.from_batches(parts), columns)

        found: GroupRows = _guarded(decode, _Ranges(read, self._size), "bad row group")
        if found.rows != group.rows:
            raise DamagedSampleError(f"bad row group: {found.rows} rows of {group.rows}")
        return found


class GroupRows:
    """The decoded samples of one row group, by their place in it: `rows` of them in `nbytes` of memory."""

    def __init__(self, table: pa.Table, columns: Columns) -> None:
        whole = columns.image in table.column_names  # a name may have dots in it
        name, _, inner = (columns.image, "", "") if whole else columns.image.rpartition(".")
        image = pa.chunked_array(table.column(name))
        self._image = pa.chunked_array([chunk.field(inner) for chunk in image.chunks]) if inner else image
        caption = table.column(columns.caption) if columns.caption else None
        lists = caption is not None and is_list(caption.type)
        self._captions = caption if lists else None
        self._caption = _as_bytes(caption) if caption is not None and not lists else None
        self._record = table.select(list(columns.record)) if columns.record else None
        self.rows, self.nbytes = table.num_rows, table.nbytes

    def stored(self, place: int) -> Stored:
        """The bytes of one sample; the record as JSON. Raises `DamagedSampleError` for what is missing or not text."""
        image = _one_image(self._image[place].as_py())
        if len(image) > MAX_MEMBER_BYTES:
            raise DamagedSampleError(f"member too large: image of {len(image)} bytes, limit {MAX_MEMBER_BYTES}")
        caption = self._caption[place].as_py() if self._caption is not None else None
        record = self._record_bytes(place)
        if caption is None and record is None:
            raise DamagedSampleError("missing caption")
        if caption is not None and len(caption) > 4 * MAX_CAPTION_CHARS:
            raise DamagedSampleError(f"caption too long: {len(caption)} bytes, limit {MAX_CAPTION_CHARS} characters")
        return Stored(image=image, caption=caption, record=record)

    def _record_bytes(self, place: int) -> bytes | None:
        if self._record is None and self._captions is None:
            return None
        columns = (
            {} if self._record is None else dict(zip(self._record.column_names, self._record.columns, strict=True))
        )
        values = {name: json_value(column[place]) for name, column in columns.items()}
        whole = values.pop(RECORD_NAME, None)
        if self._captions is not None:
            values["captions"] = json_value(self._captions[place])
        return json.dumps(values | _parsed(whole), default=str).encode()


def _one_image(value: object) -> bytes:
    """The bytes of a value of an image column: bytes, a struct that has them, or a list of one of either."""
    if isinstance(value, list):
        if len(value) > 1:
            raise DamagedSampleError(f"{len(value)} images, a sample has one")
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise DamagedSampleError("missing image")
    return value


def json_value(scalar: pa.Scalar) -> Any:  # noqa: ANN401 - a JSON value, or what is written as text in one
    """A value of the record. Times and dates beyond Python's become text, as Arrow writes them; times of a zone that
    this machine does not know are given in UTC, as they are stored.

    Raises `DamagedSampleError` if it is not UTF-8, or cannot be read.
    """
    try:
        return scalar.as_py()
    except OverflowError:
        return json_value(_as_text(scalar))
    except UnicodeDecodeError as error:
        raise DamagedSampleError("record is not UTF-8") from error
    except DAMAGE as error:
        if pa.types.is_timestamp(scalar.type) and scalar.type.tz not in (None, "UTC"):
            return json_value(scalar.cast(pa.timestamp(scalar.type.unit, "UTC")))
        raise _unreadable(error) from error


def _as_text(scalar: pa.Scalar) -> pa.Scalar:
    try:
        return scalar.cast(pa.string())
    except pa.ArrowException as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> DamagedSampleError:
    return DamagedSampleError(f"record has a value that cannot be read: {one_line(error)}")


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
        raise DamagedSampleError(f"{what}: {one_line(error)}") from error


def _names(fields: Iterable[pa.Field]) -> list[object]:
    """Names of columns and, where these hold structs, of their fields."""
    return [(field.name, _inner_names(field.type)) for field in fields]


def _inner_names(kind: pa.DataType) -> list[object]:
    if pa.types.is_struct(kind):
        return _names(kind.field(number) for number in range(kind.num_fields))
    if is_list(kind):
        return _inner_names(kind.value_type)
    return []


def _as_bytes(text: pa.ChunkedArray) -> pa.ChunkedArray:
    large = pa.types.is_large_string(text.type) or pa.types.is_large_binary(text.type)
    return text.cast(pa.large_binary() if large else pa.binary())
