"""The feature cache on disk: `<manifest>/features/<hash of provenance>/<shard>.bin`, a file for each shard.

A file is a header, one record for each row of the shard (`blip3o.data.features.records`), and a footer with what was
measured while it was written. Header and footer are JSON in a frame of fixed size with a CRC-32, so the record of a row
has a fixed place. The folder's `provenance.json` says in full what its name is the hash of.

A truncated file does not have the size that its header's rows require; nothing else marks it as complete.
"""

import hashlib
import json
import posixpath
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from blip3o import storage
from blip3o.data.features.records import RecordFormat, StoredError
from blip3o.data.shards.manifest import Manifest, ShardRow
from blip3o.errors import DataError, StorageError

MAGIC = b"BLIP3OF1"
HEADER_BYTES, FOOTER_BYTES = 4096, 512
_FRAME = len(MAGIC) + 8  # magic, CRC-32 and length of the JSON
_READ_BYTES = 8 * 2**20
_THREADS = 16  # headers that are read at once
Provenance = Mapping[str, Any]
AGAIN = "run `python -m jobs.encode RECIPE`"


@dataclass(frozen=True, kw_only=True)
class FeatureHeader:
    """What a file is of: the hash of its `provenance`, the shard as it was indexed, and the form of its records."""

    provenance: str
    shard: int
    uri: str
    size: int
    version: str
    rows: int
    bad_rows: str
    dtype: str
    tokens: int
    channels: int

    @classmethod
    def of(cls, shard: ShardRow, provenance: str, record: RecordFormat) -> "FeatureHeader":
        """The header that the features of a shard must have."""
        bad = hashlib.sha256(json.dumps(shard.bad_rows).encode()).hexdigest()[:16]
        fields = {name: getattr(shard, name) for name in ("shard", "uri", "size", "version", "rows")}
        return cls(provenance=provenance, bad_rows=bad, **asdict(record), **fields)

    @property
    def record(self) -> RecordFormat:
        """Form and shape of the records."""
        return RecordFormat(dtype=self.dtype, tokens=self.tokens, channels=self.channels)  # type: ignore[arg-type]

    @property
    def file_bytes(self) -> int:
        """The size that the whole file has."""
        return HEADER_BYTES + self.rows * self.record.record_bytes + FOOTER_BYTES


@dataclass(frozen=True, kw_only=True)
class FeatureFooter:
    """What was measured: rows with features and without, and how far the stored features are from the computed ones.

    `relative_error` is the root mean square error over the features' own root mean square; `largest_error` is one
    number's, absolute.
    """

    encoded: int
    absent: int
    relative_error: float
    largest_error: float


@dataclass(frozen=True, kw_only=True)
class FeatureFolder:
    """The features of one source: where they are, and what they must be made by."""

    uri: str
    sha256: str
    record: RecordFormat

    def file(self, shard: int) -> str:
        """The file of one shard."""
        return storage.join(self.uri, f"{shard:05d}.bin")

    def header(self, shard: ShardRow) -> FeatureHeader:
        """The header that a shard's file must have."""
        return FeatureHeader.of(shard, self.sha256, self.record)


def provenance_sha256(provenance: Provenance) -> str:
    """The hash that names a cache: of the encoder's weights, its preprocessing, pooling and type, and the records."""
    return hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()


def feature_folder(manifest_uri: str, sha256: str, record: RecordFormat) -> FeatureFolder:
    """The features of this provenance next to a manifest."""
    uri = storage.join(storage.normalize(manifest_uri), "features", sha256[:16])
    return FeatureFolder(uri=uri, sha256=sha256, record=record)


def write_provenance(folder: FeatureFolder, provenance: Provenance) -> None:
    """Says in the folder what its features are made by."""
    storage.write_bytes(storage.join(folder.uri, "provenance.json"), json.dumps(provenance, indent=1).encode())


def write_features(uri: str, header: FeatureHeader, features: Iterable[np.ndarray | None]) -> FeatureFooter:
    """Writes the file of one shard: for each row in order its features float32 [N, F], or None where there are none.

    The file appears whole or not at all (`storage.open_write`). Raises `DataError` if there are fewer or more rows than
    the header says, or if features do not fit its records; `StorageError` if the store refuses.
    """
    record, error = header.record, StoredError()
    encoded = rows = 0
    with ExitStack() as stack:
        file = stack.enter_context(storage.open_write(uri))
        file.write(_frame(asdict(header), HEADER_BYTES))
        for item in features:
            packed = record.absent if item is None else record.pack(item)
            file.write(packed)
            rows += 1
            if item is not None:
                stored = record.unpack(packed)
                encoded += 1
                error.add(item, np.zeros_like(item) if stored is None else stored)
        if rows != header.rows:
            raise DataError(f"{uri}: {rows} rows were encoded, the shard has {header.rows}")
        footer = FeatureFooter(
            encoded=encoded, absent=rows - encoded, relative_error=error.relative, largest_error=error.largest
        )
        file.write(_frame(asdict(footer), FOOTER_BYTES))
    return footer


def _frame(content: dict[str, Any], size: int) -> bytes:
    data = json.dumps(content).encode()
    if len(data) > size - _FRAME:
        raise DataError(f"{len(data)} bytes of description do not fit {size}: shorten the shard's URI")
    crc = zlib.crc32(data).to_bytes(4, "little")
    return (MAGIC + crc + len(data).to_bytes(4, "little") + data).ljust(size, b"\0")


def _unframe(uri: str, frame: bytes) -> dict[str, Any]:
    """Raises `StorageError` if these are not the bytes that `_frame` made."""
    crc, size = (int.from_bytes(frame[at : at + 4], "little") for at in (len(MAGIC), len(MAGIC) + 4))
    data = frame[_FRAME : _FRAME + size]
    if not frame.startswith(MAGIC) or zlib.crc32(data) != crc:
        raise StorageError(f"{uri} is not a feature file, or its header is damaged: delete it and {AGAIN}")
    return json.loads(data)


def read_header(uri: str) -> FeatureHeader:
    """The header of a file. Raises `StorageError` if the file is missing, or is no feature file."""
    fields = _unframe(uri, storage.read_ranges(uri, [(0, HEADER_BYTES)])[0])
    try:
        return FeatureHeader(**fields)
    except TypeError as error:
        raise StorageError(f"{uri} was written by another version of this program: delete it and {AGAIN}") from error


def read_footer(uri: str, header: FeatureHeader) -> FeatureFooter:
    """What was measured. Raises `StorageError` if the file is shorter than its header says, or damaged."""
    frame = storage.read_ranges(uri, [(header.file_bytes - FOOTER_BYTES, FOOTER_BYTES)])[0]
    return FeatureFooter(**_unframe(uri, frame))


def record_range(record: RecordFormat, row: int) -> tuple[int, int]:
    """Offset and size of a row's record in its file."""
    return HEADER_BYTES + row * record.record_bytes, record.record_bytes


def missing_features(folder: FeatureFolder, manifest: Manifest) -> dict[int, str]:
    """For each shard whose features cannot be used, what is wrong: missing, truncated, or of another shard or version.

    One listing, and the header of each file. Raises `StorageError` if the store refuses.
    """
    found = {file.uri: file.size for file in storage.list_files(folder.uri, suffix=".bin")}

    def problem(shard: ShardRow) -> str:
        file, expected = folder.file(shard.shard), folder.header(shard)
        if file not in found:
            return f"{file} is missing"
        if found[file] != expected.file_bytes:
            return f"{file} has {found[file]} bytes, features of {shard.rows} rows have {expected.file_bytes}"
        try:
            return _difference(file, read_header(file), expected)
        except StorageError as error:
            return str(error)

    with ThreadPoolExecutor(_THREADS) as pool:
        problems = pool.map(problem, manifest.shards)
        return {shard.shard: text for shard, text in zip(manifest.shards, problems, strict=True) if text}


def _difference(file: str, header: FeatureHeader, expected: FeatureHeader) -> str:
    """The first field in which a header is not the expected one, by name and value; empty if it is."""
    for name, value in asdict(expected).items():
        held = getattr(header, name)
        if held != value:
            return f"{file} has {name} {held}, expected {value}"
    return ""


def require_features(folder: FeatureFolder, manifest: Manifest, provenance: Provenance) -> None:
    """Raises `DataError`, naming file and values, unless every shard has features of exactly this provenance."""
    problems = missing_features(folder, manifest)
    if not problems:
        return
    others = [] if len(problems) < len(manifest.shards) else list(_other_provenances(folder, manifest))
    # Of several caches the one that differs least says most.
    differences = sorted((_differing(uri, other, provenance) for uri, other in others), key=len)
    first = differences[0] if differences else next(iter(problems.values()))
    raise DataError(
        f"source '{manifest.name}' has no features for {len(problems)} of {len(manifest.shards)} shards: {first}: "
        f"{AGAIN}, or set data.features=online"
    )


def _other_provenances(folder: FeatureFolder, manifest: Manifest) -> Iterator[tuple[str, dict[str, Any]]]:
    """The other caches next to a manifest."""
    for file in storage.list_files(storage.join(manifest.uri, "features"), suffix="/provenance.json"):
        uri = posixpath.dirname(file.uri)
        if uri != folder.uri:
            yield uri, json.loads(storage.read_bytes(file.uri))


def _differing(uri: str, held: Provenance, asked: Provenance) -> str:
    fields = [name for name in {**asked, **held} if held.get(name) != asked.get(name)]
    return f"{uri} has " + ", ".join(
        f"{name} {held.get(name)} where the recipe has {asked.get(name)}" for name in fields
    )


def scan_records(uri: str, header: FeatureHeader) -> Iterator[tuple[int, bytes]]:
    """Every row's record, read once from the first to the last.

    Raises `StorageError`, naming the row, at one that is not as it was written.
    """
    record = header.record
    step = max(_READ_BYTES // record.record_bytes, 1)
    with storage.open_ranges(uri) as file:
        for first in range(0, header.rows, step):
            count = min(step, header.rows - first)
            data = file.read(HEADER_BYTES + first * record.record_bytes, count * record.record_bytes)
            for number in range(count):
                piece = data[number * record.record_bytes : (number + 1) * record.record_bytes]
                yield first + number, require_whole(uri, first + number, piece, record)


def require_whole(uri: str, row: int, data: bytes, record: RecordFormat) -> bytes:
    """A record as it is. Raises `StorageError`, naming file and row, if it is not what was written."""
    if not record.is_whole(data):
        raise StorageError(f"{uri}: the features of row {row} are damaged (CRC-32): delete the file and {AGAIN}")
    return data
