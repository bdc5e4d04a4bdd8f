"""Stores the frozen encoder's features of every training image once: `python -m jobs.encode RECIPE [--actors 1,4] …`.

For a recipe that trains on such features (`data.features=cache`). A pool of actors encodes whole shards; a shard's file
appears when it is whole, so the job can be stopped anywhere, lose machines, and be submitted again: it does what is
missing, which is also how new and changed shards are added. `--verify` reads every record and encodes a part again.
"""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from blip3o.config.load import build_recipe
from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.recipe import Recipe
from blip3o.data.features.files import (
    FeatureFolder,
    FeatureFooter,
    missing_features,
    read_footer,
    read_header,
    write_provenance,
)
from blip3o.data.inputs import StageInputs
from blip3o.data.shards.manifest import Manifest
from blip3o.device import gpus_per_worker, select
from blip3o.errors import Blip3oError, ConfigError, DataError
from jobs.common import DryRun, RecipeName, StageOverrides, entry_point, join_ray, show_pipeline

if TYPE_CHECKING:
    from blip3o.train.features.encode import ShardEncoder
    from blip3o.train.features.encoder import FeatureCache

logger = logging.getLogger(__name__)

READERS = 16  # footers that are read at once
LINE_SECONDS = 30  # between lines of the log, where there is no terminal for a bar


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Actors from `smallest` to `largest` in number, each with so many CPUs (and decoding threads) and GPUs."""

    smallest: int = 1
    largest: int = 1
    cpus: float = 1
    gpus: float = 1


@dataclass(frozen=True, kw_only=True)
class EncodeSummary:
    """What encoding a source came to. `shards` were encoded (or verified) now; the rest is of all its shards.

    `relative_error` is the largest of the shards' (`FeatureFooter`); `stored_bytes` counts records, absent ones too.
    """

    source: str
    uri: str
    shards: int
    encoded: int
    absent: int
    stored_bytes: int
    relative_error: float


def encode(recipe: Recipe, pool: Pool | None = None, *, verify: bool = False) -> list[EncodeSummary]:
    """Encodes what is missing of the recipe's training sources, or verifies what there is; a summary for each.

    Raises `ConfigError` if the recipe takes no stored features or its encoder has no weights, `DataError` if a source
    is not indexed or (with `verify`) its features are not whole and right, `StorageError` if the store refuses.
    """
    from blip3o.train.features.encoder import FeatureCache

    if recipe.data.features != "cache":
        raise ConfigError(
            f"data.features is '{recipe.data.features}', and this job stores them: set data.features=cache"
        )
    cache = FeatureCache.of(recipe)
    manifests = StageInputs(recipe).manifests
    if verify:
        cache.require(manifests)
    join_ray()
    sources = enumerate(cache.sources(manifests))
    return [_encode_source(cache, number, *source, pool or Pool(), verify=verify) for number, source in sources]


def _encode_source(
    cache: "FeatureCache", number: int, manifest: Manifest, folder: FeatureFolder, pool: Pool, *, verify: bool
) -> EncodeSummary:
    every = [shard.shard for shard in manifest.shards]
    todo = every if verify else sorted(missing_features(folder, manifest))
    if todo and not verify:
        write_provenance(folder, cache.provenance)
    footers = {}
    done = _on_actors(cache, number, todo, pool, verify=verify)
    label = f"{'verify' if verify else 'encode'} {manifest.name}"
    for shard, footer in shown(done, label, len(todo)):
        footers[shard] = footer
    files = [folder.file(shard) for shard in set(every) - set(footers)]
    with ThreadPoolExecutor(READERS) as readers:
        measured = [*footers.values(), *readers.map(lambda file: read_footer(file, read_header(file)), files)]
    encoded, absent = (sum(getattr(footer, name) for footer in measured) for name in ("encoded", "absent"))
    if not encoded:
        raise DataError(f"source '{manifest.name}': none of {absent} images could be encoded: see {folder.uri}/ledger")
    return EncodeSummary(
        source=manifest.name,
        uri=folder.uri,
        shards=len(todo),
        encoded=encoded,
        absent=absent,
        stored_bytes=manifest.rows * folder.record.record_bytes,
        relative_error=max(footer.relative_error for footer in measured),
    )


Done = tuple[int, FeatureFooter]


def shown(done: Iterable[Done], label: str, total: int, *, every: float = LINE_SECONDS) -> Iterator[Done]:
    """Passes shards on, and shows how many of `total` are done and images a second since the start: a bar on a
    terminal; elsewhere, as in the log of a submitted job, a line at most every so many seconds.
    """
    console = Console(stderr=True)
    figures = (MofNCompleteColumn(), TextColumn("shards, {task.fields[rate]:.1f} images/s"), TimeRemainingColumn())
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), *figures, console=console, disable=not console.is_terminal
    )
    began = said = time.monotonic()
    images = 0
    with bar:
        task = bar.add_task(label, total=total, rate=0.0)
        for count, (shard, footer) in enumerate(done, 1):
            images += footer.encoded + footer.absent
            now = time.monotonic()
            rate = images / max(now - began, 1e-9)
            bar.update(task, completed=count, rate=rate)
            if bar.disable and (now - said >= every or count == total):
                logger.info("%s: %d of %d shards, %.1f images/s", label, count, total, rate)
                said = now
            yield shard, footer


def _on_actors(cache: "FeatureCache", number: int, shards: list[int], pool: Pool, *, verify: bool) -> Iterator[Done]:
    """Each shard and its footer as they are done. Raises the errors of the actors."""
    if not shards:
        return
    import ray.data
    from ray.data import ActorPoolStrategy

    tasks = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    tasks.context.execution_options.label_selector = dict(cache.recipe.parallel.encoder_labels) or None
    tasks.context.enable_progress_bars = False
    tasks.context.print_on_execution_start = False
    tasks.context.execution_no_progress_timeout_s = -1  # a shard may take longer than Ray's patience
    recipe = cache.recipe
    done = tasks.map(
        _Actor,
        fn_constructor_args=(recipe.model_dump(mode="json"), cache.provenance, number, pool),
        fn_constructor_kwargs={"verify": verify},
        compute=ActorPoolStrategy(min_size=pool.smallest, max_size=pool.largest, max_tasks_in_flight_per_actor=2),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus * gpus_per_worker(recipe.parallel.device),
    )
    for row in done.iter_rows():
        if row["error"]:
            raise row["error"]
        yield row["shard"], row["footer"]


class _Actor:
    """Holds the encoder, made when its first shard comes, and works on one shard at a time."""

    def __init__(
        self, tree: dict[str, Any], provenance: dict[str, Any], number: int, pool: Pool, *, verify: bool
    ) -> None:
        from blip3o.train.features.encoder import FeatureCache

        self._cache = FeatureCache(recipe=build_recipe(tree), provenance=provenance)
        self._number, self._pool, self._verify = number, pool, verify
        self._encoder: ShardEncoder | None = None

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """The footer of a shard, or the user's error, which Ray would bury."""
        try:
            work = self._shard_encoder()
            footer = (work.verify if self._verify else work.write)(task["shard"])
            return {"shard": task["shard"], "footer": footer, "error": None}
        except Blip3oError as error:
            return {"shard": task["shard"], "footer": None, "error": error}

    def _shard_encoder(self) -> "ShardEncoder":
        from blip3o.train.features.encode import ShardEncoder
        from blip3o.train.features.encoder import FrozenEncoder

        if self._encoder is None:
            recipe = self._cache.recipe
            maker = FrozenEncoder(recipe, select(recipe.parallel.device))
            expected = self._cache.provenance["weights_sha256"]
            if maker.weights_sha256 != expected:
                raise DataError(
                    f"the encoder has weights_sha256 {maker.weights_sha256}, {expected} when the job began: stop what "
                    "writes to the runs of stage.start_from, and start again"
                )
            manifest, folder = self._cache.sources(StageInputs(recipe).manifests)[self._number]
            self._encoder = ShardEncoder(
                recipe=recipe,
                manifest=manifest,
                folder=folder,
                encode=maker,
                batch_size=recipe.optim.micro_batch_size,
                threads=max(int(self._pool.cpus), 1),
            )
        return self._encoder


def _pool(actors: str, cpus: float, gpus: float) -> Pool:
    """Raises `ConfigError` if the number of actors is no pair of whole numbers in order."""
    first, _, last = actors.partition(",")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise ConfigError(f"--actors {actors} is no pair MIN,MAX with 1 <= MIN <= MAX: give e.g. 1,8")
    return Pool(smallest=int(first), largest=int(last), cpus=cpus, gpus=gpus)


def _taking(pipeline: TrainingPipeline) -> Sequence[Recipe]:
    """Every stage that takes stored features; what two stages share is there when the second one looks."""
    taking = [recipe for recipe in pipeline.stages if recipe.data.features == "cache"]
    if not taking and len(pipeline.stages) > 1:
        raise ConfigError(
            f"no stage of pipeline '{pipeline.name}' has data.features=cache: --set generate:data.features=cache"
        )
    return taking or pipeline.stages


def _tell(summaries: Iterable[EncodeSummary], *, verified: bool) -> None:
    for summary in summaries:
        logger.info(
            "%s: %d shards %s, %d images (%d absent), %.1f MB, relative error %.2e, in %s",
            summary.source,
            summary.shards,
            "verified" if verified else "encoded",
            summary.encoded,
            summary.absent,
            summary.stored_bytes / 1e6,
            summary.relative_error,
            summary.uri,
        )


def command(
    recipe: RecipeName,
    *,
    overrides: StageOverrides,
    dry_run: DryRun = False,
    actors: Annotated[str, typer.Option(metavar="MIN,MAX", help="Encoding actors, e.g. 1,8.")] = "1,1",
    num_cpus_per_actor: Annotated[float, typer.Option(metavar="N", help="CPUs and decoding threads.")] = 1,
    num_gpus_per_actor: Annotated[float, typer.Option(metavar="N", help="GPUs, where parallel.device is gpu.")] = 1,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every record, and encode a batch of each shard again.")
    ] = False,
) -> None:
    """Store the frozen encoder's features of the images of a recipe, or of a pipeline's stages."""
    pipeline = show_pipeline(recipe, overrides)
    if dry_run:
        return
    pool = _pool(actors, num_cpus_per_actor, num_gpus_per_actor)
    for stage in _taking(pipeline):
        _tell(encode(stage, pool, verify=verify), verified=verify)


main = entry_point("encode", command)

if __name__ == "__main__":
    sys.exit(main())
