"""Parquet files in memory, read and written on the calling thread.

`pyarrow.parquet.read_table` reads ahead on pyarrow's own threads. One of them can still hold the Python bytes for a
moment after the table is returned, and needs the interpreter to release them. A process that exits just then aborts
("terminate called without an active exception", exit code 134) although its work is done.
"""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(data: bytes, *, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in a Parquet file, or some of its columns. Raises what pyarrow raises for damage."""
    file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
    return file.read(columns=None if columns is None else list(columns), use_threads=False)


def write_parquet(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
