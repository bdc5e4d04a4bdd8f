"""Trains one stage: `python -m jobs.train RECIPE [--set key=value …] [--dry-run]`.

Submitting the same run again resumes it where it stopped, and does nothing if it has finished.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from blip3o import settings
from blip3o.config.recipe import Recipe
from blip3o.device import collective_backend, gpus_per_worker
from blip3o.errors import Blip3oError, CheckpointError, ConfigError
from jobs.common import join_ray, on_a_cluster, run_job

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from ray.data import Dataset

    from blip3o.data.tokenizer import ChatTokenizer


def train(recipe: Recipe) -> dict[str, Any]:
    """Trains the recipe's stage to its last step and returns the description of its result.

    Raises `Blip3oError` kinds for everything that a user can mend, before the first step where that is possible.
    """
    from blip3o.train.weights import final_uri, read_description
    from jobs.progress import shown

    identity = check(recipe)
    finished = read_description(final_uri(recipe.run.storage, recipe.run.name))
    if finished is not None:
        if finished["identity"] != identity:
            raise ConfigError(
                f"run '{recipe.run.name}' has finished with another recipe or other data: choose a new run.name"
            )
        return finished
    join_ray()
    _require_resources(recipe)
    with shown(recipe.run.name, label=recipe.run.name, total=recipe.optim.steps):
        _fit(recipe, identity)
    result = read_description(final_uri(recipe.run.storage, recipe.run.name))
    if result is None:
        raise CheckpointError(f"run '{recipe.run.name}' ended without a result: see the log of its workers")
    return result


def check(recipe: Recipe) -> str:
    """Everything that can be known to be wrong before workers start; returns the run's identity."""
    from blip3o.data import storage
    from blip3o.data.batches import build_order
    from blip3o.data.locations import source_locations, tokenizer_uri
    from blip3o.data.manifest import check_unchanged, read_manifest
    from blip3o.data.tokenizer import ChatTokenizer
    from blip3o.train import checkpoint

    manifests = [read_manifest(location.manifest) for location in source_locations(recipe.data)]
    for manifest in manifests:
        check_unchanged(manifest)
    tokens = storage.read_bytes(tokenizer_uri(recipe.data))
    tokenizer = ChatTokenizer.from_bytes(tokens)
    rows = recipe.model.backbone.vocab_size
    if len(tokenizer) > rows:
        raise ConfigError(f"the tokenizer has {len(tokenizer)} tokens, model.backbone.vocab_size is {rows}: raise it")
    starts = [_sha256_of(recipe, run) for run in recipe.stage.start_from]
    _check_weights(recipe, tokenizer)
    data = [build_order(recipe, manifests).fingerprint(), *[manifest.fingerprint for manifest in manifests]]
    data.append(hashlib.sha256(tokens).hexdigest())
    return checkpoint.identity(recipe, data_sha256=data, start_sha256=starts)


def _sha256_of(recipe: Recipe, run: str) -> str:
    """Of the weights of a finished run. Raises `ConfigError` if it has not finished."""
    from blip3o.train.weights import final_uri, read_description

    description = read_description(final_uri(recipe.run.storage, run))
    if description is None:
        raise ConfigError(f"stage.start_from names run '{run}', which has not finished under {recipe.run.storage}")
    return description["sha256"]


def _check_weights(recipe: Recipe, tokenizer: "ChatTokenizer") -> None:
    """Builds the stage without memory for its weights, to see that all fits and that what is frozen was trained."""
    import torch

    from blip3o.data.tokenizer import IMAGE_PAD, PAD
    from blip3o.train.objectives import build_stage_module
    from blip3o.train.stages import STAGES, freeze
    from blip3o.train.weights import final_uri, fitting, read_shapes, require_covered

    with torch.device("meta"):
        module = build_stage_module(recipe, image_token_id=tokenizer.ids[IMAGE_PAD], pad_id=tokenizer.ids[PAD])
    loaded: set[str] = set()
    for run in recipe.stage.start_from:
        loaded |= fitting(module.model, read_shapes(final_uri(recipe.run.storage, run)), source=run)
    require_covered(module.model, loaded, freeze(module.model, STAGES[recipe.stage.name]))


def _require_resources(recipe: Recipe) -> None:
    """Raises `ConfigError` if this machine's own Ray can never start the run; a cluster may grow, so a run waits."""
    import ray

    parallel = recipe.parallel
    cpus = parallel.workers * parallel.cpus_per_worker + parallel.data_tasks * parallel.cpus_per_data_task
    gpus = parallel.workers * gpus_per_worker(parallel.device)
    offered = ray.cluster_resources()
    if cpus <= offered.get("CPU", 0) and gpus <= offered.get("GPU", 0):
        return
    message = (
        f"parallel asks for {cpus:g} CPUs and {gpus} GPUs, Ray offers {offered.get('CPU', 0):g} and "
        f"{offered.get('GPU', 0):g}"
    )
    if on_a_cluster():
        logger.warning("%s: waiting for the cluster to grow", message)
    else:
        raise ConfigError(f"{message}: lower parallel.workers, set parallel.device=cpu, or submit to a cluster")


def _fit(recipe: Recipe, identity: str) -> None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from blip3o.data import storage
    from blip3o.data.stream import data_config
    from jobs.train_worker import WorkerTask, train_worker

    filesystem, path = storage.resolve(recipe.run.storage)
    tree = recipe.model_dump(mode="json")
    parallel = recipe.parallel
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=asdict(WorkerTask(recipe=tree, identity=identity)),
        torch_config=TorchConfig(backend=collective_backend(parallel.device)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=parallel.workers,
            use_gpu=gpus_per_worker(parallel.device) > 0,
            resources_per_worker={"CPU": parallel.cpus_per_worker, "GPU": gpus_per_worker(parallel.device)},
        ),
        run_config=ray.train.RunConfig(
            name=recipe.run.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=recipe.checkpoint.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=recipe.checkpoint.keep),
        ),
        datasets={"train": stream_factory(tree)},
        dataset_config=data_config(),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _user_error(error) from error


def stream_factory(tree: dict[str, Any]) -> "Callable[[], Dataset]":
    """A factory that Ray Train calls at every (re)start of the workers: the stream from the newest checkpoint on."""

    def build() -> "Dataset":
        from blip3o.config.load import build_recipe
        from blip3o.data.batches import build_micro_batches
        from blip3o.data.stream import build_stream
        from blip3o.train.stages import STAGES

        recipe = build_recipe(tree)
        first = committed_step(recipe) * recipe.optim.micro_batches
        return build_stream(
            num_micro_batches=recipe.optim.steps * recipe.optim.micro_batches,
            first=first,
            make_micro_batch_fn=lambda: build_micro_batches(build_recipe(tree), STAGES[recipe.stage.name].task),
            micro_batch=recipe.optim.micro_batch,
            concurrency=recipe.parallel.data_tasks,
            num_cpus=recipe.parallel.cpus_per_data_task,
        )

    return build


SNAPSHOT = "checkpoint_manager_snapshot.json"


def committed_step(recipe: Recipe) -> int:
    """The step of the newest checkpoint that Ray Train has committed for this run, 0 where there is none.

    Read from Ray Train's own snapshot, because that is what decides which checkpoint the workers will load; the loop
    asserts that the two agree. Raises `CheckpointError` if the snapshot is not in the form of Ray 2.60.
    """
    from blip3o.data import storage
    from blip3o.train import checkpoint

    uri = storage.join(recipe.run.storage, recipe.run.name, SNAPSHOT)
    if not storage.exists(uri):
        return 0
    try:
        newest = json.loads(storage.read_bytes(uri))["latest_checkpoint_result"]
        return checkpoint.step_of(newest["checkpoint_dir_name"]) if newest else 0
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{uri} is not a snapshot as Ray 2.60 writes it: use the Ray version that started the run"
        ) from error


def _user_error(error: Exception) -> Blip3oError:
    """The user's error behind a failed run, if a worker raised one; else the first line of what failed."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, Blip3oError):
                return cause
            cause = cause.__cause__ or getattr(cause, "cause", None)
    first = failures[0] if failures else error
    logger.error("a training worker failed", exc_info=first)
    return CheckpointError(f"training failed: {' '.join(str(first).split())[-600:]}")


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return run_job(
        "train", "Train one stage of the recipe; run again to resume.", lambda recipe, _: train(recipe), argv
    )


if __name__ == "__main__":
    settings.configure_ray()
    sys.exit(main())
