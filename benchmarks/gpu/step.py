"""Verb `step`: the training loop on DeepSpeed's engine, world 1, over synthetic micro-batches of real lengths.

A part is a row of `benchmarks/gpu/variants.py`. Part `upstream` takes the plain step of `benchmarks.train_step` at the
full 8b sizes, and ours on the same prompts.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.gpu import predictions
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.models import MEAN_TOKENS, building, randomize, stage_recipe
from benchmarks.gpu.prompts import lengths, micro_batches
from benchmarks.gpu.variants import VARIANTS, Variant
from benchmarks.train_step import Clock, PlainStep, counted_8b
from blip3o import settings
from blip3o.config.recipe import Recipe
from blip3o.data.text.templates import IGNORE
from blip3o.device import (
    choose_accelerator,
    collective_backend,
    kernel_seconds,
    peak_memory,
    profiler,
    reset_peak_memory,
)
from blip3o.model.backbone import Prompt
from blip3o.train.callbacks import Callback, StepRecord
from blip3o.train.deepspeed.engine import build_engine
from blip3o.train.loop import Loop, to_batch
from blip3o.train.objectives import Batch, StageModule, build_stage_module
from blip3o.train.schedule import set_learning_rates
from blip3o.train.stages import freeze, stage_of

WARM_UP = 2
SHOWN_KERNELS = 25
BYTES = 2**30


class Records(Callback):
    """Keeps the record of every step."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def after_step(self, done: int, record: StepRecord) -> None:
        """Appends it."""
        self.steps.append(record)


@contextmanager
def process_group(bench: Bench) -> Iterator[None]:
    """A group of this process alone, as the loop and the engine need one."""
    choose_accelerator(bench.options.device)
    from deepspeed import comm

    settings.export({"LOCAL_RANK": "0"})  # DeepSpeed asks for it
    dist.init_process_group(collective_backend(bench.options.device), store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        # DeepSpeed's, once it knows the group: it drops its references to it, which the next engine would take.
        (comm if comm.is_initialized() else dist).destroy_process_group()


def stage_module(bench: Bench, recipe: Recipe) -> StageModule:
    """The stage's module with random weights, built on the device in bf16."""
    with building(bench.device, torch.bfloat16):
        module = build_stage_module(recipe, image_token_id=0, pad_id=0)
    randomize(module)
    return module


def run_loop(bench: Bench, recipe: Recipe, engine: Any, module: StageModule, steps: range) -> list[StepRecord]:  # noqa: ANN401 - a DeepSpeedEngine
    """Trains some steps; returns their records."""
    records = Records()
    optim = recipe.optim.model_copy(update={"steps": steps.stop})
    Loop(
        recipe=recipe.model_copy(update={"optim": optim}),
        engine=engine,
        module=module,
        batches=micro_batches(recipe, steps.start * recipe.optim.micro_batches),
        device=bench.device,
        rank=0,
        world=1,
        pad_id=0,
        callbacks=[records],
    ).run(steps.start)
    return records.steps


def case_recipe(bench: Bench, variant: Variant) -> Recipe:
    """128 images an optimizer step, or two micro-batches of a few at nano size."""
    rows = bench.pick(variant.micro_batch, variant.micro_batch // 8)
    optim = {"optim.micro_batch_size": rows, "optim.micro_batches": bench.pick(128 // rows, 2)}
    return stage_recipe(bench, variant.preset, overrides={**optim, **variant.overrides})


def measure(bench: Bench, variant: Variant) -> None:
    """One row of the table: images/s, share of the peak on real tokens, peak memory, and the kernels of a step."""
    recipe = case_recipe(bench, variant)
    with process_group(bench):
        module = stage_module(bench, recipe)
        engine = build_engine(recipe, module)
        run_loop(bench, recipe, engine, module, range(WARM_UP))
        reset_peak_memory(bench.device)
        timed = range(WARM_UP, WARM_UP + bench.pick(4, 1))
        records = run_loop(bench, recipe, engine, module, timed)
        seconds = statistics.median(record.seconds for record in records)
        _report(bench, variant, recipe, seconds, timed)
        bench.row("peak memory", max(record.memory for record in records) / BYTES, "GiB")
        bench.note("losses", [record.loss for record in records])
        if variant.profile:
            _profile(bench, recipe, engine, module)
        engine.destroy()


def _report(bench: Bench, variant: Variant, recipe: Recipe, seconds: float, steps: range) -> None:
    count, online = recipe.optim.micro_batches, recipe.data.features == "online"
    prompts = [lengths(recipe, number).tolist() for number in range(steps.start * count, steps.stop * count)]
    every = [predictions.generate_flops(recipe.model, each, online=online) for each in prompts]
    useful = sum(every) / len(steps)
    expected = predictions.OPTIMIZER_S + count * statistics.mean(
        predictions.step_seconds(
            recipe.model,
            each,
            online=online,
            compiled=bool(recipe.parallel.compile),
            recomputed=recipe.parallel.activation_checkpointing,
        )
        for each in prompts
    )
    images, peak = recipe.optim.global_batch_size, predictions.PEAK
    bench.row("images/s", images / seconds, "images/s", predicted=images / expected)
    bench.row(
        "share of the peak, real tokens",
        useful / seconds / peak,
        "MFU",
        predicted=useful / expected / peak,
        at_least=variant.goal,
    )
    bench.note("TFLOP an image, real tokens", useful / images / 1e12)


def _profile(bench: Bench, recipe: Recipe, engine: Any, module: StageModule) -> None:  # noqa: ANN401 - as above
    """The kernels of a step of one micro-batch; idle is what their sum leaves of such a step that nothing profiled.

    The profiler needs seconds for the events of one micro-batch, and minutes for those of a whole step.
    """
    engine.set_train_batch_size(recipe.optim.micro_batch_size)
    short = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"micro_batches": 1})})
    seconds = statistics.median(record.seconds for record in run_loop(bench, short, engine, module, range(3)))
    with profiler(bench.device) as profiled:
        run_loop(bench, short, engine, module, range(3, 4))
    kernels = kernel_seconds(profiled, bench.device)
    busy = sum(kernels.values())
    bench.row("kernels of a micro-batch and its step", 1000 * busy, "ms")
    bench.row("idle share of them", max(1 - busy / seconds, 0.0), "")
    bench.note("kernels, ms", {name: round(1000 * s, 3) for name, s in list(kernels.items())[:SHOWN_KERNELS]})


class UpstreamStep(PlainStep):
    """The plain step on any device, in bf16."""

    def __init__(self, module: StageModule, recipe: Recipe) -> None:
        with building(module.model.queries.device, torch.bfloat16):
            super().__init__(module, recipe)

    def _hidden(self, prompt: Prompt) -> Tensor:
        # Its mask is made on torch's default device.
        with prompt.input_ids.device:
            return super()._hidden(prompt)


def upstream(bench: Bench) -> None:
    """Upstream's step and ours, at the same prompts of equal length: forward, backward, clipping and AdamW.

    Upstream's encodes images in the step, passes prompt and queries through the backbone with activations recomputed,
    and computes logits over all positions; ours reads features.
    """
    tokens = bench.pick(MEAN_TOKENS, 17)
    overrides = {"optim.micro_batch_size": bench.pick(16, 2), "data.features": "online"}
    online = stage_recipe(bench, "8b", overrides=overrides)
    cached = stage_recipe(bench, "8b", overrides=overrides | {"data.features": "cache"})
    rates = {name: _plain_rate(bench, recipe, tokens, name) for name, recipe in (("plain", online), ("ours", cached))}
    flops = counted_8b(MEAN_TOKENS) if bench.judged else {"other": 1.0, "ours": 1.0}
    for name, key in (("plain", "other"), ("ours", "ours")):
        predicted = predictions.TRAINING / (flops[key] * 1e12)
        bench.row(f"{name}, images/s", rates[name], "images/s", predicted=predicted)
    ratio, predicted = rates["ours"] / rates["plain"], flops["other"] / flops["ours"]
    bench.row("ours over the plain step", ratio, "x", predicted=predicted, at_least=predictions.GOAL_UPSTREAM)


def _plain_rate(bench: Bench, recipe: Recipe, tokens: int, name: str) -> float:
    """Images per second of one way, in plain PyTorch."""
    module = stage_module(bench, recipe)
    names = set(freeze(module.model, stage_of(recipe)))
    trainable = [parameter for key, parameter in module.model.named_parameters() if key in names]
    optimizer = torch.optim.AdamW(trainable, lr=recipe.optim.lr, fused=bench.options.device == "gpu")
    set_learning_rates(optimizer.param_groups, recipe.optim, 1)
    batch = _batch(bench, recipe, tokens)
    plain = UpstreamStep(module, recipe) if name == "plain" else None

    def step() -> None:
        optimizer.zero_grad()
        if plain is None:
            (module(batch)["flow"] / module.counts(batch)["flow"]).backward()
        else:
            loss, states, leaf = plain.loss(batch, Clock())
            loss.backward()
            states.backward(leaf.grad)
        torch.nn.utils.clip_grad_norm_(trainable, recipe.optim.max_grad_norm)
        optimizer.step()

    reset_peak_memory(bench.device)
    seconds = bench.seconds(step, rounds=bench.pick(3, 1))
    bench.row(f"{name}, peak memory", peak_memory(bench.device) / BYTES, "GiB")
    return recipe.optim.micro_batch_size / seconds


def _batch(bench: Bench, recipe: Recipe, tokens: int) -> Batch:
    """A micro-batch of prompts of equal length, whose last tokens are supervised, as upstream's replies are."""
    arrays = next(micro_batches(recipe, equal=tokens))
    arrays["input_ids"] = arrays["input_ids"][:, :tokens]
    batch = to_batch(arrays, pad_id=0, device=bench.device)
    rows, supervised = recipe.optim.micro_batch_size, tokens // 4
    labels = torch.full((rows, tokens + recipe.model.num_queries), IGNORE)
    labels[:, tokens - supervised : tokens] = batch["input_ids"][:, -supervised:].to("cpu")
    return {**batch, "labels": labels.to(bench.device)}


PARTS: Mapping[str, Callable[[Bench], None]] = {
    **{name: partial(measure, variant=variant) for name, variant in VARIANTS.items()},
    "upstream": upstream,
}
