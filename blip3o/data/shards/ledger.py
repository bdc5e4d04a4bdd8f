"""The ledger: everything that is damaged or that no sample uses, and why. Nothing is lost without an entry here.

Indexing writes one Parquet file next to the manifest. A run writes one small JSON object per damaged sample, named by a
hash of its uid: many workers may meet the same sample, in every pass, and the ledger still names it once.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

from blip3o import storage
from blip3o.errors import DataError, one_line
from blip3o.storage.parquet_bytes import read_parquet, write_parquet


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerEntry:
    """One damaged sample: its `uid`, the byte range (`offset`, `size`) of `uri` it lies in, the `reason`, and the
    `stage` of work (`index`, `train`, …) that found it.

    What belongs to no bad sample (a torn header, unused members) carries the uid `source/shard`. `count` is how many
    inputs the entry covers: members of a tar, rows of a table.
    """

    uid: str
    uri: str
    offset: int
    size: int
    reason: str
    stage: str
    count: int = 1


_FIX = "name a ledger, or delete the file where it was one"
_KINDS = {f.name: int if f.type is int else str for f in fields(LedgerEntry)}
_SCHEMA = pa.schema([(name, pa.int64() if kind is int else pa.string()) for name, kind in _KINDS.items()])


def write_ledger(uri: str, entries: Sequence[LedgerEntry]) -> None:
    """Writes all entries as one Parquet file, replacing what was there."""
    storage.write_bytes(uri, write_parquet(pa.Table.from_pylist([asdict(entry) for entry in entries], schema=_SCHEMA)))


def read_ledger(uri: str) -> list[LedgerEntry]:
    """Entries of a Parquet file (`….parquet`) or of a run's folder, sorted by stage and uid; empty where nothing is.

    Raises `DataError` if a file is not a ledger's, or an object in it not an entry.
    """
    if uri.endswith(".parquet"):
        rows = _table_rows(uri, storage.read_bytes(uri)) if storage.exists(uri) else []
        entries = [_entry(uri, row) for row in rows]
    else:
        files = [file.uri for file in storage.list_files(uri, suffix=".json")]
        with ThreadPoolExecutor(16) as pool:
            datas = pool.map(storage.read_bytes, files)
            entries = [_entry(file, _json(file, data)) for file, data in zip(files, datas, strict=True)]
    return sorted(entries, key=lambda entry: (entry.stage, entry.uid, entry.offset))


def _table_rows(uri: str, data: bytes) -> list[dict[str, Any]]:
    try:
        return read_parquet(data).to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # what pyarrow raises for damage
        raise DataError(f"{uri} cannot be read as a Parquet file: {one_line(error)}: {_FIX}") from error


def _json(uri: str, data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{uri} cannot be read as JSON: {one_line(error)}: {_FIX}") from error


def _entry(uri: str, row: object) -> LedgerEntry:
    # Ledgers of older versions have no counts.
    found = {"count": 1, **row} if isinstance(row, dict) else {}
    wrong = [key for key, kind in _KINDS.items() if not isinstance(found.get(key), kind)]
    wrong += [key for key in found if key not in _KINDS]
    if wrong:
        raise DataError(
            f"{uri} holds an object that is not a ledger entry: '{wrong[0]}' is missing, unknown or of another type: "
            f"{_FIX}"
        )
    return LedgerEntry(**found)


def find_ledger(uri: str) -> str:
    """The ledger that belongs to a URI: of a manifest's folder, of a run's folder, or the URI itself.

    Raises `DataError` if there is none.
    """
    if uri.endswith(".parquet"):
        candidates = [uri] if storage.exists(uri) else []
    else:
        below = storage.join(uri, "ledger")
        candidates = [file for file in (storage.join(uri, "ledger.parquet"),) if storage.exists(file)]
        candidates += [folder for folder in (below, uri) if storage.list_files(folder, suffix=".json")]
    if not candidates:
        raise DataError(
            f"{uri} holds no ledger: name the folder of a manifest or of a run; one without damage has none"
        )
    return candidates[0]


def kind_of(reason: str) -> str:
    """A reason without its details: up to the first colon, numbers as N and quoted words left out."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'", "'…'", reason).split(": ")[0])


@dataclass(frozen=True, kw_only=True)
class DamageKind:
    """Entries of one kind: how many `entries`, how many `inputs` they cover, and the reason of the first."""

    kind: str
    entries: int
    inputs: int
    first: str

    def __str__(self) -> str:
        said = self.first if self.entries == 1 else self.kind
        covers = f" ({self.inputs} inputs)" if self.inputs != self.entries else ""
        example = self.first.removeprefix(f"{self.kind}: ") if self.first not in (said, self.kind) else ""
        return f"{self.entries} x {said}{covers}{f', e.g. {example}' if example else ''}"


def by_kind(entries: Iterable[LedgerEntry]) -> list[DamageKind]:
    """Entries by the kind of their reason, the most frequent first."""
    groups: dict[str, list[LedgerEntry]] = {}
    for entry in entries:
        groups.setdefault(kind_of(entry.reason), []).append(entry)
    kinds = [
        DamageKind(kind=kind, entries=len(group), inputs=sum(entry.count for entry in group), first=group[0].reason)
        for kind, group in groups.items()
    ]
    return sorted(kinds, key=lambda kind: -kind.entries)


class Ledger:
    """A run's ledger under the folder `uri`, written from any process: `<uri>/<stage>/<hash of uid>.json`."""

    def __init__(self, uri: str, stage: str = "train") -> None:
        self.uri, self.stage = uri, stage
        self._write_once = functools.lru_cache(maxsize=4096)(self._write)

    def record(self, *, uid: str, uri: str, offset: int, size: int, reason: str) -> LedgerEntry:
        """Notes a damaged sample. Repeating a note changes nothing. Raises `StorageError` if it cannot be written."""
        entry = LedgerEntry(uid=uid, uri=uri, offset=offset, size=size, reason=reason, stage=self.stage)
        self._write_once(entry)
        return entry

    def _write(self, entry: LedgerEntry) -> None:
        name = hashlib.sha256(entry.uid.encode()).hexdigest()[:24]
        storage.write_bytes(storage.join(self.uri, self.stage, f"{name}.json"), json.dumps(asdict(entry)).encode())
