"""`blip3o encode RECIPE [--actors 1,4] [--verify] …`: stores the frozen encoder's features of every training image.

For a recipe that trains on such features (`data.features=cache`). A pool of Ray Data actors encodes whole shards
(`blip3o.train.features.encode`). A shard's file appears only when it is complete, so the job may be stopped or lose
machines at any time; submitted again, it encodes what is missing, new and changed shards included. `--verify` reads
every record and encodes a batch of each shard again.
"""

import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip3o.config.load import build_recipe
from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.recipe import Recipe
from blip3o.data.features.files import FeatureFolder, missing_features, write_provenance
from blip3o.data.inputs import StageInputs
from blip3o.data.shards.manifest import Manifest
from blip3o.device import DeviceKind, gpus_per_worker
from blip3o.errors import Blip3oError, ConfigError
from jobs.commands.progress import EncodedShard, show_shards
from jobs.common import DryRun, RecipeName, StageOverrides, entry_point, join_ray, open_pipeline

if TYPE_CHECKING:
    from blip3o.train.features.encode import ShardEncoder
    from blip3o.train.features.encoder import FeatureCache
    from blip3o.train.features.summary import EncodeSummary

# CPUs, and so decoding threads, of an actor: a GPU of the H100's kind takes more images than one core decodes.
ACTOR_CPUS: dict[DeviceKind, float] = {"cpu": 1, "gpu": 4}
# Shards that an actor works on: one is encoded while the first images of the next are decoded.
SHARDS_AT_ONCE = 2


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Between `smallest` and `largest` actors, with `cpus` (and decoding threads) and `gpus` each.

    Without `cpus`, an actor has those of `ACTOR_CPUS`.
    """

    smallest: int = 1
    largest: int = 1
    cpus: float | None = None
    gpus: float = 1

    def cpus_for(self, device: DeviceKind) -> float:
        """CPUs of an actor that encodes on this kind of device."""
        return ACTOR_CPUS[device] if self.cpus is None else self.cpus


def encode(recipe: Recipe, pool: Pool | None = None, *, verify: bool = False) -> "list[EncodeSummary]":
    """Encodes what is missing of the recipe's training sources, or verifies what is stored; returns their summaries.

    Raises `ConfigError` if the recipe takes no stored features or its encoder has no weights, `DataError` if a source
    is not indexed or (with `verify`) its features are incomplete or wrong, `StorageError` if the store refuses.
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
) -> "EncodeSummary":
    from blip3o.train.features.summary import summarize

    every = [row.shard for row in manifest.shards]
    todo = every if verify else sorted(missing_features(folder, manifest))
    if todo and not verify:
        write_provenance(folder, cache.provenance)
    encoded = _on_actors(cache, number, todo, pool, verify=verify)
    label = f"{'verify' if verify else 'encode'} {manifest.name}"
    return summarize(manifest, folder, dict(show_shards(encoded, label, len(todo))))


def _on_actors(
    cache: "FeatureCache", number: int, shards: list[int], pool: Pool, *, verify: bool
) -> Iterator[EncodedShard]:
    """Yields each shard and its footer as they are done. Raises the errors of the actors."""
    if not shards:
        return
    import ray.data
    from ray.data import ActorPoolStrategy

    tasks = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    tasks.context.execution_options.label_selector = dict(cache.recipe.parallel.encoder_labels) or None
    tasks.context.enable_progress_bars = False
    tasks.context.print_on_execution_start = False
    tasks.context.execution_no_progress_timeout_s = -1  # a shard may take longer than Ray's default allows
    recipe = cache.recipe
    cpus = pool.cpus_for(recipe.parallel.device)
    done = tasks.map(
        _Actor,
        fn_constructor_args=(recipe.model_dump(mode="json"), cache.provenance, number, max(int(cpus), 1)),
        fn_constructor_kwargs={"verify": verify},
        compute=ActorPoolStrategy(
            min_size=pool.smallest,
            max_size=pool.largest,
            # Ray Data adds actors while those it has are given nearly twice the shards that they work on.
            max_tasks_in_flight_per_actor=2 * SHARDS_AT_ONCE,
            max_concurrent_calls_per_actor=SHARDS_AT_ONCE,
            enable_true_multi_threading=True,
        ),
        num_cpus=cpus,
        num_gpus=pool.gpus * gpus_per_worker(recipe.parallel.device),
    )
    for row in done.iter_rows():
        if row["error"]:
            raise row["error"]
        yield row["shard"], row["footer"]


class _Actor:
    """Holds the encoder, loaded when the first shard arrives. Called by `SHARDS_AT_ONCE` threads."""

    def __init__(
        self, tree: dict[str, Any], provenance: dict[str, Any], number: int, threads: int, *, verify: bool
    ) -> None:
        from blip3o.train.features.encoder import FeatureCache

        self._cache = FeatureCache(recipe=build_recipe(tree), provenance=provenance)
        self._number, self._threads, self._verify = number, threads, verify
        self._encoder: ShardEncoder | None = None
        self._loading = threading.Lock()

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """The footer of a shard, or the user's error, which Ray would wrap in its own."""
        try:
            encoder = self._loaded()
            work = encoder.verify if self._verify else encoder.write
            return {"shard": task["shard"], "footer": work(task["shard"]), "error": None}
        except Blip3oError as error:
            return {"shard": task["shard"], "footer": None, "error": error}

    def _loaded(self) -> "ShardEncoder":
        from blip3o.train.features.encode import load_shard_encoder

        with self._loading:
            if self._encoder is None:
                self._encoder = load_shard_encoder(self._cache, self._number, threads=self._threads)
            return self._encoder


def _pool(actors: str, cpus: float | None, gpus: float) -> Pool:
    """Raises `ConfigError` unless `actors` is a pair of whole numbers in order."""
    first, _, last = actors.partition(",")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise ConfigError(f"--actors {actors} is no pair MIN,MAX with 1 <= MIN <= MAX: give e.g. 1,8")
    return Pool(smallest=int(first), largest=int(last), cpus=cpus, gpus=gpus)


def _cached_stages(pipeline: TrainingPipeline) -> Sequence[Recipe]:
    """Every stage that takes stored features. What two stages share is stored when the second one looks."""
    cached = [recipe for recipe in pipeline.stages if recipe.data.features == "cache"]
    if not cached and len(pipeline.stages) > 1:
        raise ConfigError(
            f"no stage of pipeline '{pipeline.name}' has data.features=cache: --set generate:data.features=cache"
        )
    return cached or pipeline.stages


def command(
    recipe: RecipeName,
    *,
    overrides: StageOverrides,
    dry_run: DryRun = False,
    actors: Annotated[str, typer.Option(metavar="MIN,MAX", help="Encoding actors, e.g. 1,8.")] = "1,1",
    num_cpus_per_actor: Annotated[
        float | None, typer.Option(metavar="N", help="CPUs and decoding threads: 1, or 4 where parallel.device is gpu.")
    ] = None,
    num_gpus_per_actor: Annotated[float, typer.Option(metavar="N", help="GPUs, where parallel.device is gpu.")] = 1,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every record, and encode a batch of each shard again.")
    ] = False,
) -> None:
    """Store the frozen encoder's features of the images of a recipe, or of a pipeline's stages."""
    pipeline = open_pipeline(recipe, overrides, dry_run=dry_run)
    if dry_run:
        return
    pool = _pool(actors, num_cpus_per_actor, num_gpus_per_actor)
    for stage in _cached_stages(pipeline):
        for summary in encode(stage, pool, verify=verify):
            print(summary.describe("verified" if verify else "encoded"))


main = entry_point("encode", command)

if __name__ == "__main__":
    sys.exit(main())
