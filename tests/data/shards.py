"""Small shards for tests: images, tars in any format, and a source written and indexed without Ray."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from PIL import Image

from blip3o.data import storage
from blip3o.data.manifest import Manifest, write_manifest, write_shard_index
from blip3o.data.scan import scan_shard

Files = list[tuple[str, bytes]]

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


def header_of(data: bytes, name: str) -> int:
    """Where the header of a file begins in a tar of short names."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmember(name).offset


def put(folder: str | Path, name: str, data: bytes) -> storage.FileInfo:
    """Stores a file and returns its description."""
    uri = storage.join(str(folder), name)
    storage.write_bytes(uri, data)
    return storage.stat(uri)


def index(folder: str | Path, tars: Sequence[bytes], name: str = "src") -> Manifest:
    """Writes shards and their manifest (at `<folder>/manifest`), as `jobs.index` does but in this process."""
    uri = storage.join(str(folder), "manifest")
    rows = []
    for number, data in enumerate(tars):
        file = put(folder, f"train-{number:05d}.tar", data)
        rows.append(write_shard_index(uri, file, scan_shard(file, source=name, shard=number)).row)
    return write_manifest(uri, name, rows)
