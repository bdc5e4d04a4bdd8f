"""What indexing found, on disk: `manifest.parquet` with one row per shard, next to one index file per shard.

The manifest is written last and atomically: if it exists, indexing has finished. An index file holds each
sample's key, the byte range of every member, and facts (`blip3o.data.shards.facts`); its header says which file (size,
version) it was made from and what was damaged, so an interrupted indexing resumes where it stopped.
"""

import functools
import hashlib
import json
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from blip3o import storage
from blip3o.config.shards import MembersConfig
from blip3o.data.shards.ledger import LedgerEntry
from blip3o.data.shards.parquet.columns import Columns
from blip3o.data.shards.scan import ShardScan
from blip3o.data.shards.scan_result import InputCounts
from blip3o.errors import DataError
from blip3o.storage.parquet_bytes import read_parquet, write_parquet
from blip3o.types import Member

_HEADER = b"blip3o"
# Of index files. Those of layout 3 have no tally: they serve all readers, and are rebuilt when the source is indexed
# again. Others are not read.
_LAYOUT = 4
_READABLE = (3, 4)
_MEMBER = pa.struct([("ext", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
_FACTS = pa.schema(
    [
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("caption_chars", pa.int32()),
        ("phash", pa.int64()),
        ("crc32", pa.int64()),
        ("fields", pa.string()),
    ]
)
_INDEX = pa.schema([("row", pa.int32()), ("key", pa.string()), ("members", pa.list_(_MEMBER)), *_FACTS])
_MANIFEST = pa.schema(
    [
        ("shard", pa.int32()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("rows", pa.int32()),
        ("bad_rows", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ShardRow:
    """One shard of a manifest: its number, the file (`size` bytes, `version` as `storage.stat` gives it), and its
    rows.
    """

    shard: int
    uri: str
    size: int
    version: str
    rows: int
    bad_rows: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """A source as indexed: `uri` of the manifest's folder, the source's `name`, and its shards by number."""

    uri: str
    name: str
    shards: tuple[ShardRow, ...]

    @property
    def rows(self) -> int:
        """Samples, good and bad."""
        return sum(shard.rows for shard in self.shards)

    @property
    def good_rows(self) -> int:
        """Samples that can be used."""
        return self.rows - sum(len(shard.bad_rows) for shard in self.shards)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over the shards' URIs, sizes, rows and bad rows."""
        fields = [(shard.uri, shard.size, shard.rows, shard.bad_rows) for shard in self.shards]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def write_manifest(uri: str, name: str, shards: Sequence[ShardRow]) -> Manifest:
    """Writes `<uri>/manifest.parquet`, whole. The index files must be there already."""
    rows = [asdict(shard) for shard in sorted(shards, key=lambda shard: shard.shard)]
    write_table(manifest_file(uri), pa.Table.from_pylist(rows, schema=_MANIFEST), {"name": name})
    return read_manifest(uri)


def read_manifest(uri: str) -> Manifest:
    """The manifest in the folder `uri`. Raises `DataError` if there is none: the source has not been indexed."""
    file = manifest_file(uri)
    if not storage.exists(file):
        raise DataError(f"{file} does not exist: index the source first, with `python -m jobs.index RECIPE`")
    table, header = read_table(file)
    rows = [ShardRow(**{**row, "bad_rows": tuple(row["bad_rows"])}) for row in table.to_pylist()]
    return Manifest(uri=storage.normalize(uri), name=header["name"], shards=tuple(rows))


def manifest_file(uri: str) -> str:
    """The manifest's own file in its folder."""
    return storage.join(uri, "manifest.parquet")


def ledger_file(uri: str) -> str:
    """The ledger of indexing in a manifest's folder."""
    return storage.join(uri, "ledger.parquet")


def check_unchanged(manifest: Manifest) -> None:
    """Raises `DataError`, naming the shard, if one is gone or is not the file that was indexed."""
    folders = {posixpath.dirname(shard.uri) for shard in manifest.shards}
    found = {file.uri: file for folder in folders for file in storage.list_files(folder)}
    again = "index the source again, with `python -m jobs.index RECIPE`"
    for shard in manifest.shards:
        file = found.get(shard.uri)
        if file is None:
            raise DataError(f"{shard.uri} is gone since it was indexed: restore it, or {again}")
        if file.size != shard.size:
            raise DataError(f"{shard.uri} has {file.size} bytes, {shard.size} when it was indexed: {again}")
        if file.version != shard.version:
            raise DataError(f"{shard.uri} was written again since it was indexed: {again}")


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """What an index file's header says: the `source` it was made for, its shard, the damage found, the `tally` of its
    inputs (None in those of an older version), the text of the `options` of the scan, for Parquet the `columns` to
    read, and for tars the `members`.
    """

    source: str
    row: ShardRow
    damage: tuple[LedgerEntry, ...]
    tally: InputCounts | None
    options: str
    columns: Columns | None
    members: MembersConfig = MembersConfig()


def write_shard_index(uri: str, file: storage.FileInfo, scan: ShardScan) -> ShardSummary:
    """Writes `<uri>/index/<shard>.parquet` from the scan of `file`, and returns its header."""
    row = ShardRow(
        shard=scan.shard,
        uri=file.uri,
        size=file.size,
        version=file.version,
        rows=len(scan.samples),
        bad_rows=scan.bad_rows,
    )
    summary = ShardSummary(
        source=scan.source,
        row=row,
        damage=scan.damage,
        tally=scan.tally,
        options=scan.options,
        columns=scan.columns,
        members=scan.members,
    )
    header = {"layout": _LAYOUT, **asdict(summary), "members": scan.members.model_dump(exclude_none=True)}
    write_table(_index_file(uri, scan.shard), _index_table(scan), header)
    return summary


def _index_table(scan: ShardScan) -> pa.Table:
    samples = [
        {
            "row": number,
            "key": sample.key,
            "members": [asdict(member) for member in sample.members],
            **asdict(sample.facts),
        }
        for number, sample in enumerate(scan.samples)
    ]
    return pa.Table.from_pylist(samples, schema=_INDEX)


def differences(manifest: Manifest, scan: ShardScan) -> list[str]:
    """How a shard, scanned again, differs from its index: a line for each sample, empty if it is the same.

    Raises as `read_shard_index`.
    """
    table, _ = _read_index(manifest, scan.shard, None)
    uri = manifest.shards[scan.shard].uri
    before, now = table.to_pylist(), _index_table(scan).to_pylist()
    if len(before) != len(now):
        return [f"{uri} has {len(now)} samples, {len(before)} when it was indexed"]
    bad_before, bad_now = manifest.shards[scan.shard].bad_rows, scan.bad_rows
    reasons = {entry.uid: entry.reason for entry in scan.damage}
    found: list[str] = []
    for row, (old, new) in enumerate(zip(before, now, strict=True)):
        uid = f"{manifest.name}/{scan.shard}/{row}"
        if (row in bad_before) != (row in bad_now):
            now_it_is = reasons.get(uid, "damaged" if row in bad_now else "good")
            found.append(f"{uid} of {uri} is {now_it_is}, which it was not when it was indexed")
        elif old != new:
            changed = next(name for name in old if old[name] != new[name])
            found.append(f"{uid} of {uri} has {changed} {new[changed]}, {old[changed]} when it was indexed")
    return found


def read_shard_summaries(uri: str) -> dict[int, ShardSummary]:
    """The headers of all index files in a manifest's folder, by shard; without those of a layout that is not read."""
    files = [file.uri for file in storage.list_files(storage.join(uri, "index"), suffix=".parquet")]
    with ThreadPoolExecutor(16) as pool:
        headers = pool.map(lambda file: read_table(file, columns=[])[1], files)
        summaries = [_summary(header) for header in headers if header.get("layout") in _READABLE]
    return {summary.row.shard: summary for summary in summaries}


class ShardIndex:
    """The members of every sample of one shard, as arrays (tens of bytes a member)."""

    def __init__(self, table: pa.Table, columns: Columns | None, names: MembersConfig) -> None:
        # Those to read, where the shard is Parquet; None for a tar, of whose members those of `names` are read.
        self.columns = columns
        self.names = names
        members = table.column("members").combine_chunks()
        fields = members.values
        self.keys: pa.Array = table.column("key").combine_chunks()
        self._starts = members.offsets.to_numpy()
        self._ext = fields.field("ext").dictionary_encode()
        self._offset, self._size = fields.field("offset").to_numpy(), fields.field("size").to_numpy()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def key(self, row: int) -> str:
        """The sample's name in its tar."""
        return self.keys[row].as_py()

    def members(self, row: int) -> tuple[Member, ...]:
        """All members of a sample, in the order of the tar."""
        return tuple(
            Member(ext=self._ext[i].as_py(), offset=int(self._offset[i]), size=int(self._size[i]))
            for i in range(self._starts[row], self._starts[row + 1])
        )

    def member(self, row: int, ext: str) -> Member | None:
        """The member of a sample with this extension, None if it has none."""
        return next((member for member in self.members(row) if member.ext == ext), None)


def read_shard_index(manifest: Manifest, shard: int) -> ShardIndex:
    """The index of one shard of a manifest. Raises `DataError` if it was not made from the shard the manifest names."""
    table, summary = _read_index(manifest, shard, ["key", "members"])
    return ShardIndex(table, summary.columns, summary.members)


def read_shard_facts(manifest: Manifest, shard: int) -> pa.Table:
    """Facts of every sample of one shard, a row each, bad ones included. Columns as `SampleFacts`: `width`, `height`,
    `caption_chars` int32, `phash`, `crc32` int64, `fields` string. Raises as `read_shard_index`.
    """
    return _read_index(manifest, shard, _FACTS.names)[0]


def _read_index(manifest: Manifest, shard: int, columns: list[str] | None) -> tuple[pa.Table, ShardSummary]:
    file = _index_file(manifest.uri, shard)
    table, header = read_table(file, columns=columns)
    if header.get("layout") not in _READABLE:
        raise DataError(f"{file} was written by an older version: index the source again")
    summary = _summary(header)
    if summary.row != manifest.shards[shard]:
        raise DataError(f"{file} and the manifest next to it are of different shards: index the source again")
    return table, summary


def _index_file(uri: str, shard: int) -> str:
    return storage.join(uri, "index", f"{shard:05d}.parquet")


def _summary(header: dict[str, Any]) -> ShardSummary:
    row = ShardRow(**{**header["row"], "bad_rows": tuple(header["row"]["bad_rows"])})
    columns = header["columns"]
    return ShardSummary(
        source=header["source"],
        row=row,
        damage=tuple(LedgerEntry(**entry) for entry in header["damage"]),
        tally=InputCounts(**header["tally"]) if "tally" in header else None,
        options=header["options"],
        members=MembersConfig(**header.get("members", {})),
        columns=Columns(**{**columns, "record": tuple(columns["record"])}) if columns else None,
    )


def write_table(uri: str, table: pa.Table, header: dict[str, Any]) -> None:
    """Writes a Parquet file, whole, with our header of JSON values."""
    storage.write_bytes(uri, write_parquet(table.replace_schema_metadata({_HEADER: json.dumps(header)})))


def read_table(uri: str, *, columns: list[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """A table, all of it or some columns, and its header. Raises `DataError` if `write_table` did not write it."""
    data = storage.read_bytes(uri)
    try:
        table = read_parquet(data, columns=columns)
        return table, json.loads(table.schema.metadata[_HEADER])
    # What pyarrow raises for a damaged file (OSError of thrift and codecs, ValueError), and for one without our header.
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{uri} is not a file of our index: delete it and index the source again") from error
