"""`blip3o index RECIPE [--set …] [--verify]`: scans the shards of all sources once and writes their manifests.

Every later read relies on a manifest. `--verify` scans all shards again, compares them with the index, byte for byte by
checksum, and writes nothing. The work is `blip3o.data.shards.indexing`; here Ray Data spreads it, one task a shard. A
small set is scanned in this process, in less time than a private Ray takes to start.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import typer

from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.recipe import Recipe
from blip3o.config.shards import SourceConfig
from blip3o.data.order.selection import is_selected, judge_shards, write_selection
from blip3o.data.shards import indexing
from blip3o.data.shards.indexing import IndexSummary, ScanAll, ScanTask
from blip3o.data.shards.locations import SourceLocation, source_locations
from blip3o.data.shards.manifest import Manifest
from blip3o.data.shards.scan import ShardScan
from blip3o.data.shards.scan_result import ScanOptions
from blip3o.errors import StorageError
from blip3o.evaluate.progress import tracked
from jobs.common import DryRun, RecipeName, StageOverrides, entry_point, has_ray, join_ray, open_pipeline

logger = logging.getLogger(__name__)

SMALL_BYTES = 128 * 2**20  # of shards to scan, up to which no Ray is started for them


def index(recipe: Recipe) -> list[IndexSummary]:
    """Indexes every source that a recipe names, for training and for evaluation, and computes their selections.

    Raises `DataError` for a source whose damage is beyond `data.max_bad_share`.
    """
    summaries = []
    for location in source_locations(recipe.data, _sources(recipe)):
        summary = index_source(
            name=location.name,
            shards_uri=location.shards,
            manifest_uri=location.manifest,
            max_bad_share=recipe.data.max_bad_share,
            options=_scan_options(recipe, location),
        )
        summaries.append(summary)
    select_samples(_sources(recipe), [summary.manifest for summary in summaries])
    return summaries


def verify(recipe: Recipe) -> None:
    """Verifies every source that a recipe names. Raises as `verify_source`."""
    for location in source_locations(recipe.data, _sources(recipe)):
        options = _scan_options(recipe, location)
        rows = verify_source(name=location.name, manifest_uri=location.manifest, options=options)
        print(f"{location.name}: {rows} samples are as they were indexed")


def index_source(
    *,
    name: str,
    shards_uri: str,
    manifest_uri: str,
    max_bad_share: float = 0.05,
    options: ScanOptions | None = None,
) -> IndexSummary:
    """`blip3o.data.shards.indexing.index_source` on the cluster, or here if the source is small and there is none."""
    return indexing.index_source(
        name=name,
        shards_uri=shards_uri,
        manifest_uri=manifest_uri,
        max_bad_share=max_bad_share,
        options=options or ScanOptions(),
        scan_all=_with_bar(f"index {name}"),
        report=print,
    )


def verify_source(*, name: str, manifest_uri: str, options: ScanOptions | None = None) -> int:
    """`blip3o.data.shards.indexing.verify_source` on the cluster, or here if the source is small and there is none."""
    return indexing.verify_source(
        name=name, manifest_uri=manifest_uri, options=options or ScanOptions(), scan_all=_with_bar(f"verify {name}")
    )


def _with_bar(label: str) -> ScanAll:
    def scan_all(tasks: Sequence[ScanTask], then: Callable[[ScanTask, ShardScan], Any]) -> Iterable[Any]:
        small = sum(task.file.size for task in tasks) <= SMALL_BYTES and not has_ray()
        scans = _scan_here(tasks, then) if small else _scan_on_ray(tasks, then)
        return tracked(scans, label, len(tasks)) if tasks else ()

    return scan_all


def _scan_here(tasks: Sequence[ScanTask], then: Callable[[ScanTask, ShardScan], Any]) -> Iterator[Any]:
    """As `_scan_on_ray`, by threads of this process: most of the work is decoding, which needs no interpreter."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        yield from threads.map(lambda task: then(task, task.scan()), tasks)


def _scan_on_ray(tasks: Sequence[ScanTask], then: Callable[[ScanTask, ShardScan], Any]) -> Iterator[Any]:
    """Scans shards on the cluster, one a Ray task; yields what `then`, which runs there too, makes of each.

    Raises the `StorageError` of the first shard that cannot be read.
    """
    if not tasks:
        return
    join_ray()
    import ray.data

    def scan(row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"result": then(row["task"], row["task"].scan()), "error": ""}
        except StorageError as error:
            return {"result": None, "error": str(error)}

    rows = ray.data.from_items([{"task": task} for task in tasks], override_num_blocks=len(tasks))
    rows.context.enable_progress_bars = False
    rows.context.print_on_execution_start = False
    for row in rows.map(scan, num_cpus=1).iter_rows():
        if row["error"]:
            raise StorageError(row["error"])
        yield row["result"]


def select_samples(sources: Sequence[SourceConfig], manifests: Sequence[Manifest]) -> None:
    """Computes the missing selections of sources from their index files.

    Raises `DataError` for a selection that leaves nothing, or that names a value which no record has.
    """
    for source, manifest in zip(sources, manifests, strict=True):
        if source.select.empty or is_selected(manifest, source.select):
            continue
        choices = judge_shards(manifest, source.select)
        chosen = list(tracked(choices, f"select {source.name}", len(manifest.shards)))
        left = write_selection(manifest, source.select, chosen)
        logger.info("%s: %d of %d good samples selected", source.name, left, manifest.good_rows)


def stages_with_new_sources(pipeline: TrainingPipeline) -> list[Recipe]:
    """The recipes of the stages that name a source which no earlier stage names: indexing these indexes everything."""
    found: list[Recipe] = []
    seen: list[SourceConfig] = []
    for recipe in pipeline.stages:
        sources = [source.model_copy(update={"weight": 1.0}) for source in _sources(recipe)]
        if any(source not in seen for source in sources):
            found.append(recipe)
            seen += sources
    return found


def _sources(recipe: Recipe) -> tuple[SourceConfig, ...]:
    return (*recipe.data.sources, *recipe.evaluate.sources)


def _scan_options(recipe: Recipe, location: SourceLocation) -> ScanOptions:
    limits, columns = recipe.data.limits, location.columns
    return ScanOptions(limits=limits, columns=columns, key=location.key, members=location.members)


def command(
    recipe: RecipeName,
    *,
    overrides: StageOverrides,
    dry_run: DryRun = False,
    compare: Annotated[
        bool, typer.Option("--verify", help="Read all shards again and compare them with the index; write nothing.")
    ] = False,
) -> None:
    """Index the sources of a recipe or a pipeline: scan every shard once and write its manifest."""
    pipeline = open_pipeline(recipe, overrides, dry_run=dry_run)
    for own in () if dry_run else stages_with_new_sources(pipeline):
        if compare:
            verify(own)
            continue
        for summary in index(own):
            print(summary)


main = entry_point("index", command)

if __name__ == "__main__":
    sys.exit(main())
