"""Trains a stage, or a pipeline of them: `blip3o train RECIPE [--set key=value …] [--dry-run]`.

Submitting the same run again resumes it where it stopped, and does nothing if it has finished. `--set STAGE:key=value`
overrides one stage of a pipeline. `--dry-run` checks what needs neither data nor Ray; with `--cluster 4x8xH100`,
against a cluster that need not be there.
"""

import hashlib
import logging
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip3o.config.cluster import parse_cluster
from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.recipe import Recipe
from blip3o.errors import CheckpointError, ConfigError, DataError, StorageError
from jobs.common import Cluster, RecipeName, StageOverrides, entry_point, join_ray, on_a_cluster, show_pipeline
from jobs.preflight import asked, planned, require_planned, tell

if TYPE_CHECKING:
    from blip3o.train.features.encoder import FeatureCache

logger = logging.getLogger(__name__)

Shapes = dict[str, tuple[int, ...]]


def train(recipe: Recipe) -> dict[str, Any]:
    """Trains the recipe's stage to its last step and returns the description of its result. Raises as a pipeline."""
    return train_pipeline(TrainingPipeline.of(recipe))[0]


def train_pipeline(pipeline: TrainingPipeline) -> list[dict[str, Any]]:
    """Trains the stages in their order, each from the results before it; returns the description of each result.

    Stages that have finished are skipped. Raises `Blip3oError` kinds for everything that a user can mend, before the
    first step where that is possible.
    """
    from blip3o.train.metrics.trackers import require_trackers
    from jobs.training.fit import fit
    from jobs.training.progress import Shown, shown

    for recipe in pipeline.stages:
        require_trackers(recipe)
    caches = [_cache(recipe) for recipe in pipeline.stages]
    features = [cache.sha256 if cache else None for cache in caches]
    data = [
        check_data(recipe) + ([sha256] if sha256 else [])
        for recipe, sha256 in zip(pipeline.stages, features, strict=True)
    ]
    check_weights(pipeline)
    results = _finished(pipeline, data)
    if len(results) == len(pipeline.stages):
        return results
    require_planned(pipeline)
    for cache in caches[len(results) :]:
        if cache is not None:
            cache.require()
    join_ray()
    _require_resources(pipeline)
    rest = pipeline.stages[len(results) :]
    with shown([Shown(run=recipe.run.name, total=recipe.optim.steps) for recipe in rest]):
        fit(pipeline, data, features)
    results = _finished(pipeline, data)
    for recipe in rest:
        _warn_of_validations(recipe)
    for recipe in pipeline.stages[len(results) :]:
        raise CheckpointError(f"run '{recipe.run.name}' ended without a result: see the log of its workers")
    return results


def _warn_of_validations(recipe: Recipe) -> None:
    """Names the validations that failed: Ray Train tells it in the log of its controller alone."""
    from blip3o import storage
    from blip3o.runs.paths import validation_uri

    due = [step for step in range(1, recipe.optim.steps + 1) if recipe.evaluate.due(step)]
    places = {step: validation_uri(recipe.run.storage, recipe.run.name, step) for step in due}
    failed = [step for step, place in places.items() if not storage.exists(place)]
    if failed:
        logger.warning("run '%s': no validation after steps %s: see the log of Ray Train", recipe.run.name, failed)


def _finished(pipeline: TrainingPipeline, data: list[list[str]]) -> list[dict[str, Any]]:
    """Results of the stages that have finished, the first ones.

    Raises `ConfigError` if one was made with another recipe or data, or has finished before an earlier stage.
    """
    from blip3o.train.checkpoint import state as checkpoint
    from blip3o.train.weights import final_uri, read_description, start_sha256

    results: list[dict[str, Any]] = []
    for number, (recipe, data_sha256) in enumerate(zip(pipeline.stages, data, strict=True)):
        result = read_description(final_uri(recipe.run.storage, recipe.run.name))
        if result is None:
            continue
        if len(results) < number:
            raise ConfigError(
                f"run '{recipe.run.name}' has finished, but '{pipeline.stages[number - 1].run.name}' before it has "
                "not: choose a new run.name for it"
            )
        identity = checkpoint.identity(recipe, data_sha256=data_sha256, start_sha256=start_sha256(recipe))
        if result["identity"] != identity:
            raise ConfigError(
                f"run '{recipe.run.name}' has finished with another recipe or other data: choose a new run.name"
            )
        results.append(result)
    return results


def check_data(recipe: Recipe) -> list[str]:
    """Everything about the data that can be known to be wrong before workers start; sha256 of all that decides."""
    from blip3o.data.batches import build_order, chat_template
    from blip3o.data.order.shuffle_quality import measure_shuffle
    from blip3o.data.shards.locations import source_locations, tokenizer_uri
    from blip3o.data.shards.manifest import check_unchanged, read_manifest
    from blip3o.data.text.tokenizer import ChatTokenizer
    from blip3o.data.text.tokenizer_files import read_tokenizer_json
    from jobs.index import select_samples

    manifests = [read_manifest(location.manifest) for location in source_locations(recipe.data)]
    for manifest in manifests:
        check_unchanged(manifest)
    tokens = read_tokenizer_json(tokenizer_uri(recipe.data))
    tokenizer = ChatTokenizer.from_bytes(tokens)
    chat_template(recipe).draw(tokenizer, "")  # raises if the frame of its turns is not the tokenizer's
    rows = recipe.model.backbone.vocab_size
    if len(tokenizer) > rows:
        raise ConfigError(f"the tokenizer has {len(tokenizer)} tokens, model.backbone.vocab_size is {rows}: raise it")
    select_samples(recipe.data.sources, manifests)
    order = build_order(recipe, manifests)
    for quality in measure_shuffle(order, batch=recipe.optim.global_batch_size):
        logger.info("%s reads %s", recipe.run.name, quality)
    data = [order.fingerprint(), *[manifest.fingerprint for manifest in manifests]]
    return [*data, hashlib.sha256(tokens).hexdigest()]


def _cache(recipe: Recipe) -> "FeatureCache | None":
    """The stored features that a stage trains on, None if it takes none.

    Raises `ConfigError` if features are to be stored or streamed, and the encoder has no weights yet.
    """
    from blip3o.train.features.encoder import FeatureCache, require_encoder

    if recipe.data.features == "stream":
        require_encoder(recipe)
    return FeatureCache.of(recipe) if recipe.data.features == "cache" else None


def check_weights(pipeline: TrainingPipeline) -> None:
    """Builds the stages without memory for their weights, to see that all fits and that what is frozen was trained."""
    import torch

    from blip3o.data.shards.locations import tokenizer_uri
    from blip3o.data.text.tokenizer import IMAGE_PAD, PAD, ChatTokenizer
    from blip3o.data.text.tokenizer_files import read_tokenizer_json
    from blip3o.train.lora import adapted_layers
    from blip3o.train.objectives import build_stage_module
    from blip3o.train.stages import freeze, stage_of
    from blip3o.train.weights import fitting, require_covered

    earlier: dict[str, Shapes] = {}
    for recipe in pipeline.stages:
        tokenizer = ChatTokenizer.from_bytes(read_tokenizer_json(tokenizer_uri(recipe.data)))
        with torch.device("meta"):
            module = build_stage_module(recipe, image_token_id=tokenizer.ids[IMAGE_PAD], pad_id=tokenizer.ids[PAD])
        trainable = freeze(module.model, stage_of(recipe))
        loaded: set[str] = set()
        for run in recipe.stage.start_from:
            loaded |= fitting(module.model, _shapes(recipe, run, earlier), source=run)
        require_covered(module.model, loaded, trainable)
        lora = recipe.stage.lora
        merged = [f"{layer}.weight" for layer in adapted_layers(module.model, lora)] if lora else []
        parameters = dict(module.model.named_parameters())
        earlier[recipe.run.name] = {name: tuple(parameters[name].shape) for name in [*trainable, *merged]}


def _shapes(recipe: Recipe, run: str, earlier: dict[str, Shapes]) -> Shapes:
    """Of the weights of a run that a stage starts from: an earlier stage of the pipeline, or a finished run.

    Raises `ConfigError` if it is neither.
    """
    from blip3o.train.weights import final_uri, read_description, read_shapes

    if run in earlier:
        return earlier[run]
    uri = final_uri(recipe.run.storage, run)
    if read_description(uri) is None:
        raise ConfigError(f"stage.start_from names run '{run}', which has not finished under {recipe.run.storage}")
    return read_shapes(uri)


def _require_resources(pipeline: TrainingPipeline) -> None:
    """Raises `ConfigError` if this machine's own Ray can never start the run; a cluster may grow, so a run waits."""
    import ray

    cpus, gpus = asked(pipeline)
    offered = ray.cluster_resources()
    if cpus <= offered.get("CPU", 0) and gpus <= offered.get("GPU", 0):
        return
    message = (
        f"parallel asks for {cpus:g} CPUs and {gpus:g} GPUs, Ray offers {offered.get('CPU', 0):g} and "
        f"{offered.get('GPU', 0):g}"
    )
    if on_a_cluster():
        logger.warning("%s: waiting for the cluster to grow", message)
    else:
        raise ConfigError(f"{message}: lower parallel.workers, set parallel.device=cpu, or submit to a cluster")


def _preview_order(recipe: Recipe) -> None:
    """Prints, as comments below the recipe, how well its order shuffles; a source that is not indexed yet is named."""
    from blip3o.data.batches import build_order
    from blip3o.data.order.shuffle_quality import measure_shuffle
    from blip3o.data.shards.locations import source_locations
    from blip3o.data.shards.manifest import read_manifest

    try:
        manifests = [read_manifest(location.manifest) for location in source_locations(recipe.data)]
        found = [
            str(it) for it in measure_shuffle(build_order(recipe, manifests), batch=recipe.optim.global_batch_size)
        ]
    except (DataError, StorageError) as error:
        found = [f"order not known yet: {error}"]
    for line in found:
        print(f"# {recipe.run.name}: {line}")


def command(
    recipe: RecipeName,
    *,
    overrides: StageOverrides,
    cluster: Cluster = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the resolved recipe, check it without data or Ray, and stop."),
    ] = False,
) -> None:
    """Train a stage or a pipeline of stages; run it again to resume."""
    from blip3o.train.preflight.checks import require  # 2 s: torch

    pipeline = show_pipeline(recipe, overrides)
    if not dry_run:
        train_pipeline(pipeline)
        return
    require(tell(planned(pipeline, parse_cluster(cluster) if cluster else None), mark="# "))
    # Who pretends a cluster may have no way to the store either: there, asking it takes minutes of retries.
    for stage in () if cluster else pipeline.stages:
        _preview_order(stage)


main = entry_point("train", command)

if __name__ == "__main__":
    sys.exit(main())
