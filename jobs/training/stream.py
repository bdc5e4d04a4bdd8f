"""The data of a fit: micro-batches of all stages under one numbering, from the point where the run resumes.

They come from actors of a Ray Data stream, or from threads of the worker, as the recipe's `data.reader` says. The code
that runs in these actors is here too. Actors that only decode start without PyTorch, which saves a second per start and
memory in every process. Ray is imported where it is needed, since a dry run only asks this module for the stream's
resources.
"""

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.recipe import Recipe
from blip3o.data.batches import MicroBatchBuilder, StagedMicroBatches, build_micro_batches
from blip3o.data.inputs import StageInputs
from blip3o.data.local_reader import read_micro_batches
from blip3o.device import gpus_per_worker
from blip3o.train.checkpoint.resume import next_micro_batch
from blip3o.train.stages import stage_of
from jobs.training.plan import FitPlan

if TYPE_CHECKING:
    from ray.data import Dataset

    from blip3o.data.stream import Encoders
    from blip3o.train.features.encoder import FrozenEncoder

Arrays = dict[str, Any]

PER_PACKET = 4
PACKET_BYTES = 16 * 2**20  # the stream holds several packets for each worker

# Threads of an encoding actor: one gives the encoder a micro-batch while the other waits for features of the last one.
ENCODER_THREADS = 2


def reads_locally(pipeline: TrainingPipeline) -> bool:
    """Whether the workers make their micro-batches themselves."""
    return pipeline.stages[0].data.reader == "local"


def worker_micro_batches(plan: FitPlan) -> Iterator[Arrays]:
    """This worker's micro-batches in order, from where the run resumes. Called once, by every worker."""
    import ray.train

    pipeline = plan.pipeline()
    if not reads_locally(pipeline):
        from blip3o.data.stream import iterate_micro_batches

        return iterate_micro_batches(ray.train.get_dataset_shard("train"))
    context = ray.train.get_context()
    first = next_micro_batch(pipeline) + context.get_world_rank()
    return read_micro_batches(
        range(first, pipeline.ends[-1], context.get_world_size()),
        staged_micro_batches(plan),
        threads=pipeline.stages[0].parallel.data_threads,
    )


def datasets(plan: FitPlan) -> "dict[str, Callable[[], Dataset]]":
    """What Ray Train splits over the workers: nothing where they read by themselves."""
    return {} if reads_locally(plan.pipeline()) else {"train": stream_factory(plan)}


def stream_factory(plan: FitPlan) -> "Callable[[], Dataset]":
    """A factory that Ray Train calls at every (re)start of the workers. The stream starts at the newest checkpoint."""

    def build() -> "Dataset":
        from blip3o.data.stream import Packets, build_stream

        pipeline = plan.pipeline()
        parallel = pipeline.stages[0].parallel
        return build_stream(
            numbers=range(next_micro_batch(pipeline), pipeline.ends[-1]),
            make_micro_batch_fn=lambda: staged_micro_batches(plan),
            packets=Packets(ranks=parallel.max_workers, size=micro_batches_per_packet(pipeline)),
            concurrency=parallel.data_actors,
            threads=parallel.data_threads,
            num_cpus=parallel.cpus_per_data_actor,
            labels=parallel.data_labels,
            encoders=stream_encoders(plan),
        )

    return build


def micro_batches_per_packet(pipeline: TrainingPipeline) -> int:
    """How many micro-batches of a worker travel together: small ones do, if the number of workers is fixed."""
    parallel = pipeline.stages[0].parallel
    if parallel.min_workers != parallel.max_workers:
        return 1  # which worker gets a micro-batch depends on their number, unknown here
    return max(1, min(PER_PACKET, PACKET_BYTES // max(_largest_bytes(recipe) for recipe in pipeline.stages)))


def _largest_bytes(recipe: Recipe) -> int:
    """A bound of the bytes of a micro-batch: every view of an image, and the columns of its text."""
    model = recipe.model
    pixels = sum(size**2 for size in (model.encoder.image_size, model.backbone.image_size, model.decoder.image_size))
    return recipe.optim.micro_batch_size * (3 * pixels + 16 * recipe.data.max_length)


def stream_encoders(plan: FitPlan) -> "Encoders | None":
    """The encoding actors of the stream; None if no stage streams its features."""
    from blip3o.data.stream import Encoders

    pipeline = plan.pipeline()
    if not streams_features(pipeline):
        return None
    parallel = pipeline.stages[0].parallel
    return Encoders(
        make=lambda: staged_encoders(plan.pipeline()),
        count=parallel.encoder_actors,
        num_cpus=parallel.cpus_per_encoder_actor,
        num_gpus=parallel.gpus_per_encoder_actor * gpus_per_worker(parallel.device),
        threads=ENCODER_THREADS,
        labels=parallel.encoder_labels,
    )


def streams_features(pipeline: TrainingPipeline) -> bool:
    """Whether encoding actors compute the features of any stage in the stream."""
    return any(recipe.data.features == "stream" for recipe in pipeline.stages)


def staged_micro_batches(plan: FitPlan) -> Callable[[int], Arrays]:
    """Micro-batch number → arrays, through all stages of a plan."""
    pipeline = plan.pipeline()
    stages = zip(pipeline.stages, plan.features, strict=True)
    return StagedMicroBatches([partial(_open, recipe, features) for recipe, features in stages], pipeline.ends)


def _open(recipe: Recipe, features_sha256: str | None) -> MicroBatchBuilder:
    """Opens a stage when the stream reaches it, so that an actor holds the inputs of only one stage."""
    inputs = StageInputs(recipe, features_sha256=features_sha256)
    return build_micro_batches(inputs, stage_of(recipe).task)


def staged_encoders(pipeline: TrainingPipeline) -> Callable[[Arrays], Arrays]:
    """Replaces the encoder's pixels in the arrays of a micro-batch by features, if its stage streams them.

    The encoder of a stage is built when the stream reaches the stage; only the newest is kept. Threads may call it at
    the same time.
    """
    building = threading.Lock()

    @lru_cache(maxsize=1)
    def built(stage: int) -> "FrozenEncoder":
        from blip3o.device import select
        from blip3o.train.features.encoder import FrozenEncoder

        recipe = pipeline.stages[stage]
        return FrozenEncoder(recipe, select(recipe.parallel.device))

    def encoder(stage: int) -> "FrozenEncoder":
        with building:
            return built(stage)

    def encode(arrays: Arrays) -> Arrays:
        stage = bisect_right(pipeline.ends, int(arrays["micro_batch"][0]))
        if pipeline.stages[stage].data.features != "stream":
            return arrays
        others = {name: array for name, array in arrays.items() if name != "encoder_pixels"}
        return {**others, "features": encoder(stage).column(arrays["encoder_pixels"])}

    return encode
