"""Scans the shards of a source once, on all machines, and writes its manifest: what every later read relies on.

`python -m jobs.index RECIPE [--set key=value …]` does it for the recipe's training and held-out sources; `--verify`
reads all shards again and compares them with what is indexed, byte for byte by checksum, and writes nothing.
The work of one shard is `blip3o.data.shards.scan`; here are finding the shards, spreading them with Ray Data, going on
where an earlier run stopped, and the budget for damage. The manifest is written last.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.progress import track

from blip3o import storage
from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.recipe import Recipe, SourceConfig
from blip3o.data.order.selection import is_selected, judge_shards, write_selection
from blip3o.data.shards.accounts import Account, account, refusal, shards_among
from blip3o.data.shards.found import STAGE, ScanOptions
from blip3o.data.shards.ledger import LedgerEntry, by_kind, write_ledger
from blip3o.data.shards.locations import SourceLocation, source_locations
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
from blip3o.errors import DataError, StorageError
from blip3o.storage.patterns import find_shards
from jobs.common import join_ray, run_pipeline_job

logger = logging.getLogger(__name__)

SHOWN = 5  # differences that the error of `--verify` names, and kinds of damage that indexing prints


@dataclass(frozen=True, kw_only=True)
class IndexSummary:
    """What indexing a source came to. `scanned` shards were read now, the other ones were known from before."""

    manifest: Manifest
    scanned: int
    bad_rows: int
    bad_share: float


def index_source(
    *,
    name: str,
    shards_uri: str,
    manifest_uri: str,
    max_bad_share: float = 0.05,
    options: ScanOptions | None = None,
) -> IndexSummary:
    """Indexes the shards of a source and writes its manifest; shards that have not changed since, and were scanned with
    the same `options`, are not read again.

    Needs Ray to be initialised. Raises `DataError`, and leaves no manifest, if the share of samples and pictures, of
    captions or of shards that are lost is above `max_bad_share`; the ledger beside the manifest names them. Prints how
    many inputs became samples, and where the rest is listed.
    """
    options = options or ScanOptions()
    shards = shards_among(find_shards(shards_uri))
    made = read_shard_summaries(manifest_uri)
    known = {number: summary for number, summary in made.items() if summary.tally is not None}
    if len(known) < len(made):
        logger.info("%s: %d shards were indexed by an older version: read again", name, len(made) - len(known))
    summaries = {
        number: known[number]
        for number, file in enumerate(shards)
        if number in known and _is_of(known[number], name, file, options)
    }
    todo = [{"number": n, **asdict(file)} for n, file in enumerate(shards) if n not in summaries]

    def write(file: storage.FileInfo, scan: ShardScan) -> ShardSummary:
        return write_shard_index(manifest_uri, file, scan)

    scans = _scan_all(todo, name, options, write)
    console = Console(stderr=True)
    for summary in track(scans, f"index {name}", total=len(todo), console=console, disable=not todo):
        summaries[summary.row.shard] = summary
    ordered = [summaries[number] for number in range(len(shards))]
    sums = _settled(name, ordered, manifest_uri, max_bad_share, options)
    manifest = write_manifest(manifest_uri, name, [summary.row for summary in ordered])
    bad_rows = manifest.rows - manifest.good_rows
    return IndexSummary(manifest=manifest, scanned=len(todo), bad_rows=bad_rows, bad_share=sums.lost_share)


def _is_of(summary: ShardSummary, name: str, file: storage.FileInfo, options: ScanOptions) -> bool:
    row = summary.row
    made = (summary.source, row.uri, row.size, row.version, summary.options)
    return made == (name, file.uri, file.size, file.version, options.text())


def _scan_all(
    todo: list[dict[str, Any]], name: str, options: ScanOptions, then: Callable[[storage.FileInfo, ShardScan], Any]
) -> Iterator[Any]:
    """Scans shards on the cluster, one a task; what `then` makes of each, as they are done.

    Raises `StorageError` as the tasks do.
    """
    if not todo:
        return
    import ray.data

    def scan(task: dict[str, Any]) -> dict[str, Any]:
        try:
            file = storage.FileInfo(uri=task["uri"], size=task["size"], version=task["version"])
            found = scan_shard(file, source=name, shard=task["number"], options=options)
            return {"result": then(file, found), "error": ""}
        except StorageError as error:
            return {"result": None, "error": str(error)}

    tasks = ray.data.from_items(todo, override_num_blocks=len(todo))
    tasks.context.enable_progress_bars = False
    tasks.context.print_on_execution_start = False
    for row in tasks.map(scan, num_cpus=1).iter_rows():
        if row["error"]:
            raise StorageError(row["error"])
        yield row["result"]


def verify_source(*, name: str, manifest_uri: str, options: ScanOptions | None = None) -> int:
    """Reads every shard of an indexed source again and compares it with its index; returns the number of samples.

    Needs Ray to be initialised. Raises `DataError` that counts the differences and names the first ones, if there are
    any, if a shard is gone or was written again, or if it was indexed with other `options`.
    """
    options = options or ScanOptions()
    manifest = read_manifest(manifest_uri)
    check_unchanged(manifest)
    for summary in read_shard_summaries(manifest_uri).values():
        if summary.options != options.text():
            raise DataError(
                f"{summary.row.uri} was indexed with other limits, columns or members: index the source again"
            )
    todo = [{"number": row.shard, "uri": row.uri, "size": row.size, "version": row.version} for row in manifest.shards]
    compared = _scan_all(todo, name, options, lambda _, scan: differences(manifest, scan))
    bar = track(compared, f"verify {name}", total=len(todo), console=Console(stderr=True))
    found = [line for lines in bar for line in lines]
    if found:
        first = "; ".join(found[:SHOWN])
        raise DataError(f"source '{name}' differs from its index in {len(found)} places: {first}: restore the shards")
    return manifest.rows


def _settled(
    name: str, summaries: list[ShardSummary], manifest_uri: str, max_bad_share: float, options: ScanOptions
) -> Account:
    """Writes the ledger, and prints what became of all inputs. Raises `DataError`, and deletes an older manifest, if
    too many are lost.
    """
    sums = account(summaries)
    assert sums is not None  # shards that were not counted have been scanned anew
    ledger = ledger_file(manifest_uri)
    entries = [entry for summary in summaries for entry in summary.damage]
    for uri in sums.empty:
        logger.info("%s: %s holds nothing, and nothing is lost", name, uri)
    lost, fix = refusal(sums, entries, options, max_bad_share)
    if lost and not entries:
        entries = [_nothing(name, summary) for summary in summaries]
    write_ledger(ledger, entries)
    print(f"{name}: {sums.line(ledger)}")
    for kind in by_kind(entries)[:SHOWN]:
        print(f"  {kind}")
    if lost:
        storage.delete(manifest_file(manifest_uri))
        raise DataError(f"source '{name}': {lost}, and the budget is {max_bad_share:.2%}: see {ledger}; {fix}")
    return sums


def _nothing(name: str, summary: ShardSummary) -> LedgerEntry:
    row = summary.row
    reason = f"holds nothing: {row.size} bytes without a member or a row"
    return LedgerEntry(
        uid=f"{name}/{row.shard}", uri=row.uri, offset=0, size=row.size, reason=reason, stage=STAGE, count=0
    )


def select_samples(sources: Sequence[SourceConfig], manifests: Sequence[Manifest]) -> None:
    """Works out the selections of sources that have not been, from their index files.

    Raises `DataError` for one that leaves nothing, or names what no record has.
    """
    for source, manifest in zip(sources, manifests, strict=True):
        if source.select.empty or is_selected(manifest, source.select):
            continue
        found = judge_shards(manifest, source.select)
        bar = track(found, f"select {source.name}", total=len(manifest.shards), console=Console(stderr=True))
        left = write_selection(manifest, source.select, list(bar))
        logger.info("%s: %d of %d good samples selected", source.name, left, manifest.good_rows)


def _sources(recipe: Recipe) -> tuple[SourceConfig, ...]:
    return (*recipe.data.sources, *recipe.evaluate.sources)


def _options_of(recipe: Recipe, location: SourceLocation) -> ScanOptions:
    limits, columns = recipe.data.limits, location.columns
    return ScanOptions(limits=limits, columns=columns, key=location.key, members=location.members)


def index(recipe: Recipe) -> list[IndexSummary]:
    """Indexes every source that a recipe names, for training and for evaluation, and works out their selections."""
    join_ray()
    summaries = []
    for location in source_locations(recipe.data, _sources(recipe)):
        summary = index_source(
            name=location.name,
            shards_uri=location.shards,
            manifest_uri=location.manifest,
            max_bad_share=recipe.data.max_bad_share,
            options=_options_of(recipe, location),
        )
        shards, rows = len(summary.manifest.shards), summary.manifest.rows
        logger.info("%s: %d shards, %d samples, %d damaged", location.name, shards, rows, summary.bad_rows)
        summaries.append(summary)
    select_samples(_sources(recipe), [summary.manifest for summary in summaries])
    return summaries


def with_own_sources(pipeline: TrainingPipeline) -> list[Recipe]:
    """The recipes of the stages that name a source which none before names: indexed, they leave nothing out."""
    found: list[Recipe] = []
    seen: list[SourceConfig] = []
    for recipe in pipeline.stages:
        sources = [source.model_copy(update={"weight": 1.0}) for source in _sources(recipe)]
        if any(source not in seen for source in sources):
            found.append(recipe)
            seen += sources
    return found


def verify(recipe: Recipe) -> None:
    """Verifies every source that a recipe names. Raises as `verify_source`."""
    join_ray()
    for location in source_locations(recipe.data, _sources(recipe)):
        options = _options_of(recipe, location)
        rows = verify_source(name=location.name, manifest_uri=location.manifest, options=options)
        logger.info("%s: %d samples are as they were indexed", location.name, rows)


def _run(pipeline: TrainingPipeline, options: argparse.Namespace) -> None:
    for recipe in with_own_sources(pipeline):
        if options.verify:
            verify(recipe)
        else:
            index(recipe)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify", action="store_true", help="read all again and compare with the index; write nothing"
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return run_pipeline_job("index", "Index the sources of a recipe or a pipeline.", _run, argv, extend=_options)


if __name__ == "__main__":
    sys.exit(main())
