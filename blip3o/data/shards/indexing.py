"""Indexing and verifying a source, shard by shard: the work of `blip3o index`, without what spreads it over machines.

The caller brings a `ScanAll`, which scans many shards at once (`jobs.index` has one on Ray Data). Shards that have not
changed since an earlier run are not scanned again. The manifest is written last, and only within the budget for damage.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from blip3o import storage
from blip3o.data.shards.accounts import Account, account, refusal, shards_among
from blip3o.data.shards.ledger import LedgerEntry, by_kind, write_ledger
from blip3o.data.shards.manifest import (
    Manifest,
    ShardSummary,
    check_unchanged,
    differences,
    ledger_file,
    manifest_file,
    read_manifest,
    read_shard_summaries,
    write_manifest,
    write_shard_index,
)
from blip3o.data.shards.scan import ShardScan, scan_shard
from blip3o.data.shards.scan_result import STAGE, ScanOptions
from blip3o.errors import DataError
from blip3o.storage.patterns import find_shards
from blip3o.storage.sizes import readable

logger = logging.getLogger(__name__)

SHOWN = 5  # differences that the error of verifying names, and kinds of damage that indexing reports


@dataclass(frozen=True, kw_only=True)
class ScanTask:
    """One shard to scan: shard `number` of a source, as the file was when it was listed."""

    source: str
    number: int
    file: storage.FileInfo
    options: ScanOptions

    def scan(self) -> ShardScan:
        """Scans the shard. Raises `StorageError` if the file cannot be read or has changed."""
        return scan_shard(self.file, source=self.source, shard=self.number, options=self.options)


# Scans every shard and yields what a function makes of each, in any order. The function may run in another process.
ScanAll = Callable[[Sequence[ScanTask], Callable[[ScanTask, ShardScan], Any]], Iterable[Any]]


@dataclass(frozen=True, kw_only=True)
class IndexSummary:
    """The result of indexing a source. `scanned` shards were scanned now; the others are known from before."""

    manifest: Manifest
    scanned: int
    bad_rows: int
    bad_share: float

    def __str__(self) -> str:
        """One line for the console."""
        shards = self.manifest.shards
        known = len(shards) - self.scanned
        did = "already indexed:" if not self.scanned else f"indexed ({known} shards were)" if known else "indexed"
        size = readable(sum(shard.size for shard in shards))
        return (
            f"{did} {self.manifest.name}, {len(shards)} shards ({size}), {self.manifest.rows} samples, "
            f"{self.bad_rows} damaged; manifest in {self.manifest.uri}"
        )


def index_source(
    *,
    name: str,
    shards_uri: str,
    manifest_uri: str,
    max_bad_share: float,
    options: ScanOptions,
    scan_all: ScanAll,
    report: Callable[[str], None],
) -> IndexSummary:
    """Indexes the shards of a source and writes its manifest. A shard is scanned again only if it has changed or was
    scanned with other `options`.

    Raises `DataError`, and leaves no manifest, if the share of samples and images, of captions or of shards that are
    lost is above `max_bad_share`; the ledger next to the manifest names them. `report` gets the lines that say how many
    inputs became samples, and where the rest is listed.
    """
    shards = shards_among(find_shards(shards_uri))
    summaries = _known_summaries(name, shards, manifest_uri, options)
    todo = [
        ScanTask(source=name, number=number, file=file, options=options)
        for number, file in enumerate(shards)
        if number not in summaries
    ]

    def write(task: ScanTask, scan: ShardScan) -> ShardSummary:
        return write_shard_index(manifest_uri, task.file, scan)

    for summary in scan_all(todo, write):
        summaries[summary.row.shard] = summary
    ordered = [summaries[number] for number in range(len(shards))]
    sums = _check_budget(name, ordered, manifest_uri, max_bad_share, options, report)
    manifest = write_manifest(manifest_uri, name, [summary.row for summary in ordered])
    bad_rows = manifest.rows - manifest.good_rows
    return IndexSummary(manifest=manifest, scanned=len(todo), bad_rows=bad_rows, bad_share=sums.lost_share)


def _known_summaries(
    name: str, shards: Sequence[storage.FileInfo], manifest_uri: str, options: ScanOptions
) -> dict[int, ShardSummary]:
    """The summaries of an earlier run that still hold, by the number of the shard."""
    found = read_shard_summaries(manifest_uri)
    counted = {number: summary for number, summary in found.items() if summary.tally is not None}
    if len(counted) < len(found):
        logger.info("%s: %d shards were indexed by an older version: read again", name, len(found) - len(counted))
    return {
        number: counted[number]
        for number, file in enumerate(shards)
        if number in counted and _still_holds(counted[number], name, file, options)
    }


def _still_holds(summary: ShardSummary, name: str, file: storage.FileInfo, options: ScanOptions) -> bool:
    row = summary.row
    indexed = (summary.source, row.uri, row.size, row.version, summary.options)
    return indexed == (name, file.uri, file.size, file.version, options.text())


def _check_budget(
    name: str,
    summaries: list[ShardSummary],
    manifest_uri: str,
    max_bad_share: float,
    options: ScanOptions,
    report: Callable[[str], None],
) -> Account:
    """Writes the ledger and reports what became of all inputs.

    Raises `DataError`, and deletes an older manifest, if too many are lost.
    """
    sums = account(summaries)
    assert sums is not None  # shards without counts have been scanned again
    ledger = ledger_file(manifest_uri)
    entries = [entry for summary in summaries for entry in summary.damage]
    for uri in sums.empty:
        logger.info("%s: %s holds nothing, and nothing is lost", name, uri)
    lost, fix = refusal(sums, entries, options, max_bad_share)
    if lost and not entries:
        entries = [_empty_shard(name, summary) for summary in summaries]
    write_ledger(ledger, entries)
    report(f"{name}: {sums.line(ledger)}")
    for kind in by_kind(entries)[:SHOWN]:
        report(f"  {kind}")
    if lost:
        storage.delete(manifest_file(manifest_uri))
        raise DataError(f"source '{name}': {lost}, and the budget is {max_bad_share:.2%}: see {ledger}; {fix}")
    return sums


def _empty_shard(name: str, summary: ShardSummary) -> LedgerEntry:
    row = summary.row
    reason = f"holds nothing: {row.size} bytes without a member or a row"
    return LedgerEntry(
        uid=f"{name}/{row.shard}", uri=row.uri, offset=0, size=row.size, reason=reason, stage=STAGE, count=0
    )


def verify_source(*, name: str, manifest_uri: str, options: ScanOptions, scan_all: ScanAll) -> int:
    """Scans every shard of an indexed source again and compares it with its index; returns the number of samples.

    Raises `DataError` that counts the differences and names the first ones, if there are any, if a shard is missing or
    was written again, or if it was indexed with other `options`.
    """
    manifest = read_manifest(manifest_uri)
    check_unchanged(manifest)
    for summary in read_shard_summaries(manifest_uri).values():
        if summary.options != options.text():
            raise DataError(
                f"{summary.row.uri} was indexed with other limits, columns or members: index the source again"
            )
    tasks = [
        ScanTask(
            source=name,
            number=row.shard,
            file=storage.FileInfo(uri=row.uri, size=row.size, version=row.version),
            options=options,
        )
        for row in manifest.shards
    ]
    found = [line for lines in scan_all(tasks, lambda _, scan: differences(manifest, scan)) for line in lines]
    if found:
        first = "; ".join(found[:SHOWN])
        raise DataError(f"source '{name}' differs from its index in {len(found)} places: {first}: restore the shards")
    return manifest.rows
