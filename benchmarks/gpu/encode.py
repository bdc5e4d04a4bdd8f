"""Verb `encode`: the EVA tower, decoding on threads, whole shards, and the loss of cached against online features."""

import io
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu import predictions
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.models import build, model_config, stage_recipe, tokenizer
from benchmarks.gpu.parity import SHALLOW, difference
from benchmarks.gpu.prompts import micro_batches
from benchmarks.gpu.step import BYTES, stage_module
from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.data.features.files import write_provenance
from blip3o.data.features.records import to_bf16_bits
from blip3o.data.images.decode import decode_image
from blip3o.data.sets.writer import Sample, shard_bytes
from blip3o.data.shards.locations import source_locations, tokenizer_uri
from blip3o.data.shards.manifest import write_manifest, write_shard_index
from blip3o.data.shards.scan import scan_shard
from blip3o.device import peak_memory, reset_peak_memory
from blip3o.model.encoder import normalize_pixels
from blip3o.model.layers import split_heads
from blip3o.rng import numpy_generator
from blip3o.runs.paths import final_uri
from blip3o.runs.results import write_final
from blip3o.train.features.encode import ShardEncoder, load_shard_encoder
from blip3o.train.features.encoder import FeatureCache
from blip3o.train.loop import to_batch

SIZES = (16, 32, 64)
TOLERANCE = 3e-2  # bf16 over 64 layers: ours against attention written out
LOSS_TOLERANCE = 1e-3  # cached against online: features in bf16 either way
PICTURES = {"512 x 512": (512, 512), "1024 x 1024": (1024, 1024), "1500 x 2250": (1500, 2250)}
ENCODER_RUN = "encoder"


@torch.inference_mode()
def tower(bench: Bench) -> None:
    """Images/s of the EVA tower, eager and compiled, against the plain one with attention written out."""
    config = model_config(bench, "8b")
    encoder: Any = build(config, ("encoder",), bench.device, torch.bfloat16).encoder
    images = {size: _images(bench, config.encoder.image_size, bench.pick(size, size // 8)) for size in SIZES}
    first = images[SIZES[0]]
    bench.check("ours against the plain tower", difference(encoder(first), _plain(encoder, first)), at_most=TOLERANCE)
    rates = {"plain": _rate(bench, "plain", first, partial(_plain, encoder, first))}
    for size, given in images.items():
        rates[f"{size}"] = _rate(bench, f"batch of {size}", given, partial(encoder, given))
    best = max(rates.values())
    bench.row("ours over the plain tower, batch of 16", rates["16"] / rates["plain"], "x")
    for block in encoder.blocks:
        block.compile(dynamic=False)  # each size has static kernels
    for size, given in bench.pick(images, {SIZES[0]: first}).items():  # a CPU compiles each shape for a minute
        rate = _rate(bench, f"compiled, batch of {size}", given, partial(encoder, given))
        best = max(best, rate)
    bench.row("best", best, "images/s", at_least=predictions.GOAL_ENCODING)


def _rate(bench: Bench, what: str, images: Tensor, call: Callable[[], object]) -> float:
    reset_peak_memory(bench.device)
    rate = images.shape[0] / bench.seconds(call, rounds=bench.pick(4, 2))
    bench.row(f"{what}", rate, "images/s", predicted=predictions.encoding_rate() if bench.judged else None)
    bench.note(f"{what}: peak memory, GiB", peak_memory(bench.device) / BYTES)
    return rate


def _images(bench: Bench, side: int, count: int) -> Tensor:
    pixels = numpy_generator("gpu", "images").integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).to(bench.device)


def _plain(encoder: Any, pixels: Tensor) -> Tensor:  # noqa: ANN401 - an EvaEncoder
    """The tower with the softmax of all pairs written out, as upstream's computes it without an extension."""
    config = encoder.config
    x = encoder.patch_embed(normalize_pixels(pixels, encoder.mean, encoder.std).to(encoder.pos_embed.dtype))
    x = torch.cat([encoder.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + encoder.pos_embed
    for block in encoder.blocks:
        q, k, v = (split_heads(part, config.heads) for part in block.attn.qkv(x).chunk(3, dim=-1))
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        x = x + block.norm1(block.attn.proj((weights @ v).transpose(1, 2).flatten(2)))
        x = x + block.norm2(block.mlp(x))
    grid = x[:, 1:].transpose(1, 2).unflatten(-1, (config.patches, config.patches))
    return encoder.project(F.avg_pool2d(grid, config.pool).flatten(2).transpose(1, 2))


def decode(bench: Bench) -> None:
    """Images/s from JPEG bytes to the tower's pixels, on 1, 4 and 16 threads."""
    side = model_config(bench, "8b").encoder.image_size
    for name, (height, width) in PICTURES.items():
        data = picture(height // bench.pick(1, 4), width // bench.pick(1, 4), 0)
        for threads in (1, 4, 16):
            count = bench.pick(64 * threads, 8)
            with ThreadPoolExecutor(threads) as pool:
                seconds = bench.seconds(partial(_decode_all, pool, data, side, count), rounds=1, warm=1)
            bench.row(f"{name}, threads: {threads}", count / seconds, "images/s")


def _decode_all(pool: ThreadPoolExecutor, data: bytes, side: int, count: int) -> None:
    for _ in pool.map(lambda _: decode_image(data, side), range(count)):
        pass


def picture(height: int, width: int, number: int) -> bytes:
    """A JPEG with the smooth areas and the grain of a photograph."""
    generator = numpy_generator("gpu", "picture", number)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = generator.integers(-8, 9, (height, width, 3), dtype=np.int16)
    buffer = io.BytesIO()
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def shards(bench: Bench) -> None:
    """`ShardEncoder` over local shards with 1, 4 and 8 threads: read, decode, encode, write."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = _recipe(bench, folder)
        _world(bench, recipe)
        cache = FeatureCache.of(recipe)
        encoder = load_shard_encoder(cache, 0, threads=1)
        write_provenance(encoder.folder, cache.provenance)
        encoder.write(0)  # kernels are loaded, and files are in the page cache
        for turn, threads in enumerate((1, 4, 8)):
            if bench.late(f"threads: {threads}"):
                return
            work = replace(encoder, threads=threads)
            numbers = range(1 + turn, 2 + turn) if threads < 8 else range(1 + turn, len(encoder.manifest.shards))
            rows = sum(encoder.manifest.shards[number].rows for number in numbers)
            seconds = bench.seconds(partial(_write, work, numbers), rounds=1, warm=0)
            predicted = predictions.encoding_rate() if bench.judged else None
            bench.row(f"threads: {threads}", rows / seconds, "images/s", predicted=predicted)


def _write(encoder: ShardEncoder, numbers: range) -> None:
    for number in numbers:
        encoder.write(number)


def _recipe(bench: Bench, folder: str) -> Recipe:
    recipe = stage_recipe(bench, "8b", overrides={"parallel.encoder_batch_size": bench.pick(32, 4)})
    run = recipe.run.model_copy(update={"storage": f"{folder}/runs"})
    stage = recipe.stage.model_copy(update={"start_from": (ENCODER_RUN,)})
    sources = tuple(source.model_copy(update={"shards": "pictures/*.tar"}) for source in recipe.data.sources)
    data = recipe.data.model_copy(update={"root": f"{folder}/data", "sources": sources})
    return recipe.model_copy(update={"run": run, "stage": stage, "data": data})


def _world(bench: Bench, recipe: Recipe) -> None:
    """2,000 pictures of 512 pixels in shards with their index, a tokenizer, and the encoder's random weights."""
    [location] = source_locations(recipe.data)
    made = [picture(bench.pick(512, 64), bench.pick(512, 64), number) for number in range(16)]
    per_shard, summaries = bench.pick(250, 5), []
    for shard in range(bench.pick(8, 5)):
        numbers = range(shard * per_shard, (shard + 1) * per_shard)
        samples = [
            Sample(key=f"{n:06d}", image=made[n % 16], ext="jpg", record={"captions": [f"picture {n}"]})
            for n in numbers
        ]
        uri = storage.join(recipe.data.root, "pictures", f"part-{shard:05d}.tar")
        storage.write_bytes(uri, shard_bytes(samples))
        scan = scan_shard(storage.stat(uri), source=location.name, shard=shard)
        summaries.append(write_shard_index(location.manifest, storage.stat(uri), scan).row)
    write_manifest(location.manifest, location.name, summaries)
    storage.write_bytes(tokenizer_uri(recipe.data), tokenizer().to_bytes())
    encoder = build(recipe.model, ("encoder",), bench.device, torch.bfloat16)
    tensors = {name: parameter.to("cpu") for name, parameter in encoder.named_parameters()}
    write_final(final_uri(recipe.run.storage, ENCODER_RUN), tensors, {"run": ENCODER_RUN, "identity": ENCODER_RUN})


def loss(bench: Bench) -> None:
    """The loss of one micro-batch with features stored in bf16, against features computed in the step."""
    changes = bench.pick({name: SHALLOW[name] for name in ("backbone", "dit")}, {})
    options = {"optim.micro_batch_size": bench.pick(16, 2), "data.features": "online"}
    recipe = stage_recipe(bench, "8b", changes=changes, overrides=options)
    module = stage_module(bench, recipe).requires_grad_(requires_grad=False)
    arrays = next(micro_batches(recipe))
    batch = to_batch(arrays, pad_id=0, device=bench.device)
    with torch.no_grad():
        online = module(batch)["flow"].item()
        stored = to_bf16_bits(module.model.features(batch["encoder_pixels"]).cpu().numpy())
        cached = {name: array for name, array in arrays.items() if name != "encoder_pixels"} | {"features": stored}
        found = module(to_batch(cached, pad_id=0, device=bench.device))["flow"].item()
    bench.check("loss: cached against online", abs(found - online) / abs(online), at_most=LOSS_TOLERANCE)
    bench.row("to the bit (1: equal)", float(found == online), "", predicted=1.0)


PARTS: Mapping[str, Callable[[Bench], None]] = {"tower": tower, "decode": decode, "loss": loss, "shards": shards}
