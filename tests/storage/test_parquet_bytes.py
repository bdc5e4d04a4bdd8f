"""Parquet in memory leaves nothing to pyarrow's threads, which must not hold Python's bytes when a process ends."""

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip3o.storage.parquet_bytes import read_parquet, write_parquet

TABLE = pa.table({f"c{number}": [f"{number} {row}" for row in range(500)] for number in range(8)})
# Counts threads after a table was read: pyarrow starts its own when it first needs one, and keeps them.
THREADS = """
import os, sys
from blip3o.storage.parquet_bytes import read_parquet
data = sys.stdin.buffer.read()
before = len(os.listdir("/proc/self/task"))
read_parquet(data, columns=["c1", "c7"])
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_what_is_written_is_read_whole_or_by_columns():
    table = TABLE.replace_schema_metadata({"a": "b"})
    data = write_parquet(table)
    assert read_parquet(data).equals(table, check_metadata=True)
    assert read_parquet(data, columns=["c3"]).equals(table.select(["c3"]), check_metadata=True)
    assert read_parquet(data, columns=[]).schema.metadata == {b"a": b"b"}
    assert pq.read_table(pa.BufferReader(data)).equals(table)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_reading_starts_no_thread_of_pyarrows():
    done = subprocess.run(
        [sys.executable, "-c", THREADS], input=write_parquet(TABLE), capture_output=True, check=True, timeout=60
    )
    assert done.stdout == b"0\n", done.stdout
