"""Small shards for tests: images, tars in any format, and a source written and indexed without Ray."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, settings
from PIL import Image

from blip3o import storage
from blip3o.data.shards.manifest import Manifest, write_manifest, write_shard_index
from blip3o.data.shards.scan import scan_shard

Files = list[tuple[str, bytes]]

# What a clone has in place of a file where Git LFS has not fetched it.
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"

# For property tests: how long an example takes says more of the machine than of the code.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def png(seed: int = 0, size: tuple[int, int] = (12, 9)) -> bytes:
    """A PNG of noise, so that a flipped byte matters."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return encode(Image.fromarray(pixels))


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def png_bomb(width: int, height: int) -> bytes:
    """A few bytes that claim to be a PNG of any size."""

    def piece(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = piece(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + piece(b"IDAT", zlib.compress(bytes(100))) + piece(b"IEND", b"")


def sample(key: str, *, image: bytes | None = None, caption: bytes | None = None, record: bytes | None = None) -> Files:
    """The three files of a healthy sample, or with some of them replaced."""
    return [
        (f"{key}.png", png(zlib.crc32(key.encode())) if image is None else image),
        (f"{key}.txt", f"caption of {key}".encode() if caption is None else caption),
        (f"{key}.json", json.dumps({"key": key}).encode() if record is None else record),
    ]


def samples(count: int, prefix: str = "s") -> Files:
    """The files of `count` healthy samples `s000`, `s001`, …."""
    return [file for number in range(count) for file in sample(f"{prefix}{number:03d}")]


def tar(files: Files, kind: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar of some files in one of `tarfile`'s formats."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def parquet(rows: Sequence[dict], *, group: int = 4, schema: pa.Schema | None = None, **options: object) -> bytes:
    """A Parquet file of some rows, `group` of them in a row group, with checksums of its pages.

    Captions given as bytes become text that need not be UTF-8.
    """
    table = pa.Table.from_pylist(list(rows), schema=schema)
    captions = table.column("caption") if "caption" in table.column_names else None
    if captions is not None and pa.types.is_binary(captions.type):
        text = pa.chunked_array([chunk.view(pa.string()) for chunk in captions.chunks])
        table = table.set_column(table.column_names.index("caption"), "caption", text)
    return stored(table, row_group_size=group, write_page_checksum=True, **options)


def stored(table: pa.Table, **options: object) -> bytes:
    """A table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def rows(count: int, prefix: str = "s") -> list[dict]:
    """The samples of `samples` as rows with columns `image`, `caption` and `key` for a record."""
    return [
        {"image": files[0][1], "caption": files[1][1].decode(), **json.loads(files[2][1])}
        for files in (sample(f"{prefix}{number:03d}") for number in range(count))
    ]


def header_of(data: bytes, name: str) -> int:
    """Where the header of a file begins in a tar of short names."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmember(name).offset


def put(folder: str | Path, name: str, data: bytes) -> storage.FileInfo:
    """Stores a file and returns its description."""
    uri = storage.join(str(folder), name)
    storage.write_bytes(uri, data)
    return storage.stat(uri)


def index(folder: str | Path, shards: Sequence[bytes], name: str = "src") -> Manifest:
    """Writes shards and their manifest (at `<folder>/manifest`), as `jobs.index` does but in this process."""
    uri = storage.join(str(folder), "manifest")
    indexed = []
    for number, data in enumerate(shards):
        file = put(folder, f"train-{number:05d}.{'parquet' if data[:4] == b'PAR1' else 'tar'}", data)
        indexed.append(write_shard_index(uri, file, scan_shard(file, source=name, shard=number)).row)
    return write_manifest(uri, name, indexed)
