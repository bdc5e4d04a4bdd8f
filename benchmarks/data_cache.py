"""A training step on stored features against the same step with the encoder online, at the tiny preset.

    python -m benchmarks.data_cache [--scenes 256] [--batch 16] [--steps 8] [--rounds 9]

Both take the same micro-batches of the generate stage from local shards: read, decode, tokenise, collate, forward,
backward, AdamW, in one process on one thread. Losses must be bit-equal. Also reported: the seconds of the data path
without the step, and for each record format its bytes, its error, and the images encoded per second.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks._measure import in_turns, options, report
from benchmarks._runs import recipe_tree, write_initialised
from blip3o import storage
from blip3o.config.load import build_recipe
from blip3o.config.recipe import Recipe
from blip3o.data.batches import MicroBatchBuilder, build_micro_batches
from blip3o.data.inputs import StageInputs
from blip3o.data.sets.scenes import build_scenes, samples
from blip3o.data.shards.manifest import write_manifest, write_shard_index
from blip3o.data.shards.scan import scan_shard
from blip3o.data.text.tokenizer import IMAGE_PAD, PAD, ChatTokenizer
from blip3o.model.unified import initialize
from blip3o.train.features.encode import ShardEncoder
from blip3o.train.features.encoder import FeatureCache, FrozenEncoder
from blip3o.train.loop import to_batch
from blip3o.train.objectives import StageModule, build_stage_module
from blip3o.train.stages import freeze, stage_of

CPU = torch.device("cpu")
DTYPES = ("bf16", "fp16", "int8")
ENCODER = "bench-encoder"


def source_recipe(root: str, arguments: argparse.Namespace, *, features: str, dtype: str | None = None) -> Recipe:
    """The generate stage at the tiny preset, over generated scenes, starting from an untrained encoder."""
    return build_recipe(
        recipe_tree(
            root,
            data={"features": features, "feature_dtype": dtype},
            stage={"start_from": [ENCODER]},
            optim={"steps": 1000, "micro_batch_size": arguments.batch},
            checkpoint={"every": 1000},
        )
    )


def prepare(root: str, arguments: argparse.Namespace) -> None:
    """Indexed scenes, a tokenizer, and an untrained encoder."""
    shards = build_scenes(f"{root}/scenes", train=arguments.scenes, heldout=1, samples_per_shard=64).shards["train"]
    manifest, rows = f"{root}/manifests/scenes", []
    for number, uri in enumerate(sorted(shards)):
        file = storage.stat(uri)
        rows.append(write_shard_index(manifest, file, scan_shard(file, source="scenes", shard=number)).row)
    write_manifest(manifest, "scenes", rows)
    recipe = source_recipe(root, arguments, features="online")
    words = [caption for scene in samples(train=64, heldout=1) for caption in scene.record["captions"]]
    tokenizer = ChatTokenizer.train([*words, recipe.data.template.instruction, recipe.data.template.system], 1024)
    storage.write_bytes(f"{root}/tokenizer.json", tokenizer.to_bytes())
    write_initialised(recipe, {ENCODER: "encoder"})


def _encode(recipe: Recipe) -> tuple[FeatureCache, dict[str, Any]]:
    """Stores the features of every shard; returns the cache and the figures of its records."""
    cache = FeatureCache.of(recipe)
    ((manifest, folder),) = cache.sources(StageInputs(recipe).manifests)
    encode, width = FrozenEncoder(recipe, CPU), recipe.optim.micro_batch_size
    work = ShardEncoder(recipe=recipe, manifest=manifest, folder=folder, encode=encode, batch_size=width, threads=1)
    began = time.perf_counter()
    footers = [work.write(shard.shard) for shard in manifest.shards]
    seconds = time.perf_counter() - began
    return cache, {
        "record_bytes": folder.record.record_bytes,
        "relative_error": round(max(footer.relative_error for footer in footers), 6),
        "images_per_second": round(manifest.good_rows / seconds, 1),
    }


def _module(root: str, recipe: Recipe) -> StageModule:
    """The stage with the stored encoder; all other weights are as initialised."""
    tokenizer = ChatTokenizer.from_bytes(storage.read_bytes(f"{root}/tokenizer.json"))
    module = build_stage_module(recipe, image_token_id=tokenizer.ids[IMAGE_PAD], pad_id=tokenizer.ids[PAD])
    initialize(module.model, 0)
    freeze(module.model, stage_of(recipe))
    return module


def _stepper(build: MicroBatchBuilder, module: StageModule) -> Callable[[], float]:
    """Each call trains on the next micro-batch and returns the loss."""
    pad = build.encoder.tokenizer.ids[PAD]
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    number = -1

    def step() -> float:
        nonlocal number
        number += 1
        batch = to_batch(build(number), pad_id=pad, device=CPU)
        loss = module(batch)["flow"] / module.counts(batch)["flow"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _losses(step: Callable[[], float], count: int) -> list[float]:
    return [step() for _ in range(count)]


def main(argv: list[str] | None = None) -> None:
    """Measures, compares and reports. Ends with an error if a loss from stored features is not the online one."""
    sizes = {"scenes": 256, "batch": 16, "steps": 8, "rounds": 9}
    arguments, results = options(__doc__.splitlines()[0], sizes, argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        prepare(root, arguments)
        online, cached = (source_recipe(root, arguments, features=kind) for kind in ("online", "cache"))
        cache, exact = _encode(cached)
        records = {dtype: _encode(source_recipe(root, arguments, features="cache", dtype=dtype))[1] for dtype in DTYPES}
        builds = [build_micro_batches(StageInputs(online), stage_of(online).task)]
        builds += [build_micro_batches(StageInputs(cached, features_sha256=cache.sha256), stage_of(cached).task)]
        slow, fast = (
            _stepper(*pair) for pair in zip(builds, (_module(root, online), _module(root, cached)), strict=True)
        )
        expected, found = _losses(slow, arguments.steps), _losses(fast, arguments.steps)
        if expected != found:
            raise SystemExit(f"losses {found} from stored features, {expected} online: nothing to compare")
        ours, other = in_turns(
            lambda: _losses(fast, arguments.steps), lambda: _losses(slow, arguments.steps), rounds=arguments.rounds
        )
        reading = in_turns(
            *(partial(_read, build, arguments.steps) for build in reversed(builds)), rounds=arguments.rounds
        )
    data = [round(statistics.median(seconds), 4) for seconds in reading]
    report(
        "data_cache",
        ours,
        other,
        results,
        data_seconds={"ours": data[0], "other": data[1]},
        records={"fp32": exact, **records},
        sizes=vars(arguments),
    )


def _read(build: MicroBatchBuilder, count: int) -> None:
    for number in range(count):
        build(number)


if __name__ == "__main__":
    main()
