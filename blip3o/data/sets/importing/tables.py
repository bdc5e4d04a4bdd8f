"""A table's file into items: CSV and its relatives, JSON, JSON Lines and Parquet, each also compressed with gzip.

The file's ending says what it is; Parquet and gzip are known by their first bytes too.
"""

import gzip
import hashlib
import zlib
from typing import Any

import pyarrow as pa

from blip3o import storage
from blip3o.data.sets.importing.columns import TableOptions
from blip3o.data.sets.importing.csv_rows import csv_rows, require_unique
from blip3o.data.sets.importing.encodings import decoded
from blip3o.data.sets.importing.items import Item, Listing
from blip3o.data.sets.importing.json_rows import json_rows
from blip3o.data.sets.importing.pictures import extension, found_instead
from blip3o.data.sets.importing.table_rows import row_item
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.parquet.samples import json_value
from blip3o.errors import DataError, one_line
from blip3o.storage.parquet_bytes import read_parquet

_JSONS = ("jsonl", "ndjson", "json")
ENDINGS = ("csv", "tsv", "tab", *_JSONS, "parquet")
_UNPACK = {b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz", b"BZh": "bzip2"}
_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, RecursionError)


def table_kind(uri: str) -> str:
    """Which table a file is by its ending, in any case and before `.gz`: one of `ENDINGS`, or empty."""
    name = uri.rstrip("/").lower().removesuffix(".gz")
    kind = extension(name)
    return kind if kind in ENDINGS else ""


def list_table(uri: str, options: TableOptions) -> Listing:
    """The rows of the table at a URI as items. Raises `DataError` if it cannot be read or has no rows."""
    data = storage.read_bytes(uri)
    items = table_items(uri, data, options)
    return Listing(items=items, digest=hashlib.sha256(data).hexdigest(), noun="rows")


def table_items(uri: str, data: bytes, options: TableOptions) -> tuple[Item, ...]:
    """The rows of a table, given as its bytes. Raises `DataError` if it cannot be read or has no rows."""
    kind, name = table_kind(uri), storage.shown(uri)
    try:
        rows, found = _rows(kind, _unpacked(data), options)
    except _DAMAGE as error:
        raise DataError(f"{name} cannot be read as {kind}: {_cause(error)}") from error
    if not rows:
        raise DataError(f"{name} has no rows{found and f': its columns are {found}'}")
    table = storage.normalize(uri)
    return tuple(row_item(table, number, row, options) for number, row in enumerate(rows, start=1))


def _cause(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return one_line(error, limit=600)


def _unpacked(data: bytes) -> bytes:
    if packer := next((name for magic, name in _UNPACK.items() if data.startswith(magic)), ""):
        raise ValueError(f"it is compressed with {packer}: unpack it, or use gzip")
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, zlib.error, OSError) as error:
        raise ValueError(f"its gzip data are damaged: {error}") from error


def _rows(kind: str, data: bytes, options: TableOptions) -> tuple[list[Any], str]:
    """The rows of a table, and which columns a table has that names them once."""
    if kind == "parquet" or data.startswith(b"PAR1"):
        return _parquet_rows(data)
    if not data.strip():
        return [], ""
    if data.startswith(b"PK\x03\x04"):
        raise ValueError("it is a ZIP archive, as workbooks are: save it as CSV")
    if instead := found_instead(data, is_text=True):
        raise ValueError(f"it {instead}")
    if kind in _JSONS:
        return json_rows(decoded(data), is_row=options.is_row), ""
    return csv_rows(decoded(data), options)


def _parquet_rows(data: bytes) -> tuple[list[Any], str]:
    table = read_parquet(data)
    names = table.column_names
    require_unique(names)
    columns = [_values(name, column) for name, column in zip(names, table.columns, strict=True)]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)], ", ".join(map(repr, names))


def _values(name: str, column: pa.ChunkedArray) -> list[Any]:
    """The values of a column. Raises `ValueError` if one cannot be read."""
    try:
        return column.to_pylist()
    except _DAMAGE:  # such as a date beyond Python's: one by one
        try:
            return [json_value(scalar) for scalar in column]
        except DamagedSampleError as error:
            raise ValueError(f"column '{name}': {error}") from error
