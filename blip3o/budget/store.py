"""What a stage reads from the object store, and whether stored features or online encoding are cheaper."""

from dataclasses import dataclass

from blip3o.budget.prices import Prices, peak_flops
from blip3o.budget.training import GIGA, decode_ms
from blip3o.budget.work import encoder_flops
from blip3o.config.recipe import Recipe
from blip3o.data.features.records import RecordFormat

MILLION = 1e6
PREFIX_GETS = 5_500  # GET requests a second that S3 promises for one prefix


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The store while a stage trains: Gbit and GET requests a second of all workers, and the USD of the whole stage."""

    bytes_per_sample: float
    gets_per_sample: float
    gbit_per_s: float
    gets_per_s: float
    usd: float


@dataclass(frozen=True, kw_only=True)
class FeatureStore:
    """Stored features of a set against encoding in each pass.

    `encode_usd` is one encoding of the set on this kind of GPU, `store_usd` keeping the records for
    `cache_months`, `read_usd` the requests of a pass. `passes` is where stored features become cheaper; None: never.
    """

    samples: float
    stored_gb: float
    encode_gpu_hours: float
    encode_usd: float
    store_usd: float
    read_usd: float
    passes: float | None


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """A split of the work: GPUs that train, GPUs that encode for them, and CPUs that read and decode.

    `cpus_per_gpu` are busy decoding for one training GPU; `decode_nodes` are nodes without a GPU, for what the
    trainers' own CPUs cannot do next to their workers.
    """

    cpus_per_gpu: float
    trainer_nodes: int
    encoder_gpus: int
    decode_nodes: int


def reading(recipe: Recipe, prices: Prices, *, images_per_s: float) -> Reading:
    """Bytes and requests of the shards, and of stored features: one request a record of 64 KiB or more."""
    rates, store = prices.assumptions, prices.store
    size = (rates.image_kb + rates.caption_kb) * 1e3 * rates.read_amplification
    gets = rates.gets_per_sample
    if recipe.data.features == "cache":
        size += record_bytes(recipe)
        gets += 1
    samples = recipe.optim.steps * recipe.optim.global_batch_size
    usd = samples * (gets / MILLION * store.usd_per_million_gets + size / GIGA * store.usd_per_gb_read)
    return Reading(
        bytes_per_sample=size,
        gets_per_sample=gets,
        gbit_per_s=size * images_per_s * 8 / GIGA,
        gets_per_s=gets * images_per_s,
        usd=usd,
    )


def record_bytes(recipe: Recipe) -> int:
    """Bytes of one stored feature."""
    encoder = recipe.model.encoder
    return RecordFormat(dtype=recipe.stored_dtype, tokens=encoder.num_tokens, channels=encoder.channels).record_bytes


def feature_store(recipe: Recipe, prices: Prices, *, gpu: str, samples: float) -> FeatureStore:
    """The comparison for a set of `samples` images."""
    offer, rates, store = prices.gpu(gpu), prices.assumptions, prices.store
    hours = samples * encoder_flops(recipe) / (peak_flops(gpu) * rates.encode_mfu) / 3600
    encode = hours * offer.usd_per_hour / offer.gpus
    stored = samples * record_bytes(recipe) / GIGA
    kept = stored * store.usd_per_gb_month * rates.cache_months
    read = samples / MILLION * store.usd_per_million_gets + stored * store.usd_per_gb_read
    return FeatureStore(
        samples=samples,
        stored_gb=stored,
        encode_gpu_hours=hours,
        encode_usd=encode,
        store_usd=kept,
        read_usd=read,
        passes=(encode + kept) / (encode - read) if encode > read else None,
    )


def split_nodes(recipe: Recipe, prices: Prices, *, gpu: str, images_per_s: float) -> Nodes:
    """How many nodes of each kind keep the trainers busy."""
    offer, rates, parallel = prices.gpu(gpu), prices.assumptions, recipe.parallel
    workers = parallel.max_workers
    nodes = -(-workers // offer.gpus)
    cores = images_per_s * decode_ms(recipe, rates) / 1000
    spare = nodes * offer.cpus - workers * parallel.cpus_per_worker
    encoding = 0.0
    if recipe.data.features == "stream":
        encoding = images_per_s * encoder_flops(recipe) / (peak_flops(gpu) * rates.encode_mfu)
    return Nodes(
        cpus_per_gpu=cores / workers,
        trainer_nodes=nodes,
        encoder_gpus=-int(-encoding // 1),
        decode_nodes=-int(-max(0.0, cores - spare) // prices.cpu.cpus),
    )
