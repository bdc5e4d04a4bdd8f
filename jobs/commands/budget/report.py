"""The report of a budget as lines of at most 80 columns."""

import math
from collections.abc import Iterator

from blip3o.budget.memory import DeviceMemory
from blip3o.budget.plan import Budget
from blip3o.budget.prices import Prices, peak_flops
from blip3o.budget.store import PREFIX_GETS
from blip3o.budget.training import Training, implied_mfu
from blip3o.train.preflight.memory import GIB

TERA = 1e12


def report(budget: Budget, prices: Prices, *, sweep: bool, took: float | None) -> list[str]:
    """All sections; `sweep` adds a line for every number of GPUs and every ZeRO stage."""
    lines = [*_head(budget, prices), *_memory(budget, prices), *_flops(budget), *_time(budget)]
    if took is not None:
        mfu = implied_mfu(budget.recipe, budget.flops, gpu=budget.request.gpu, days=took)
        lines.append(f"  {took:g} days on {budget.request.count} of them would be {_share(mfu)} of the peak")
    if sweep:
        lines += [*_counts(budget), *_stages(budget, prices)]
    return [*lines, *_data(budget, prices), *_nodes(budget, prices), *_serving(budget, prices)]


def _head(budget: Budget, prices: Prices) -> Iterator[str]:
    request, recipe = budget.request, budget.recipe
    offer = prices.gpu(request.gpu)
    yield f"{budget.name} on {request.count} x {request.gpu.upper()}"
    yield f"  {offer.instance}: {offer.gpus} GPUs at ${offer.usd_per_hour:g} an hour, known {prices.as_of}"
    yield "  list prices, unverified: put your own in a file and name it with --prices"
    trained, frozen = budget.parameters.trained, budget.parameters.frozen
    yield f"  {trained / 1e9:.3f} G parameters trained, {frozen / 1e9:.3f} G frozen"
    optim = recipe.optim
    yield f"  {optim.steps:,} steps of {optim.micro_batches} x {optim.micro_batch_size} samples"


def _memory(budget: Budget, prices: Prices) -> Iterator[str]:
    parallel = budget.recipe.parallel
    yield from ("", f"memory of one GPU, GiB (ZeRO {parallel.zero_stage}, {parallel.precision})")
    memory = budget.memory
    rows = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "moving average": memory.average,
        "activations": memory.activations,
        "buckets, gathered": memory.buffers,
        "optimizer step, in their place": memory.step,
    }
    yield from (f"  {name:<32}{size / GIB:>9.2f}" for name, size in rows.items() if size)
    offered = prices.gpu(budget.request.gpu).gpu_gib
    yield f"  {'peak':<32}{memory.peak / GIB:>9.2f} of {offered:g}{_fits(memory, budget, prices)}"
    stored, again = (budget.activations[kind].peak / GIB for kind in ("stored", "recomputed"))
    yield f"  activations stored {stored:.2f}, recomputed {again:.2f}"


def _fits(memory: DeviceMemory, budget: Budget, prices: Prices) -> str:
    offered, rates = prices.gpu(budget.request.gpu).gpu_gib, prices.assumptions
    return "" if memory.peak / GIB + rates.library_gib <= rates.headroom * offered else ", too much"


def _flops(budget: Budget) -> Iterator[str]:
    whole = sum(budget.flops.values())
    yield from ("", f"work of one sample: {whole / TERA:.4g} TFLOP")
    yield from (f"  {name:<32}{flops / TERA:>9.4g} {_share(flops / whole):>7}" for name, flops in budget.flops.items())


def _time(budget: Budget) -> Iterator[str]:
    plan, name = budget.training, budget.request.gpu
    yield from ("", f"a step, ms (peak {peak_flops(name) / TERA:g} TFLOP/s)")
    parts = {
        "compute": plan.compute_s,
        "collectives not hidden": plan.communication_s,
        "optimizer": plan.optimizer_s,
        "waiting for data": plan.waiting_s,
        "sum": plan.step_s,
    }
    yield from (f"  {part:<32}{seconds * 1e3:>9.1f}" for part, seconds in parts.items())
    kept = plan.checkpoints
    yield f"  checkpoints {kept.share:.2%}, failures {kept.lost:.2%} of the time on top"
    yield f"  one every {_time_of(kept.interval_s)} of {kept.stall_s:.1f} s each"
    yield f"  best by Young {_time_of(kept.young_s)}, by Daly {_time_of(kept.daly_s)}"
    yield from ("", f"training: {_line(plan)}")
    yield f"  {plan.images_per_s / plan.workers:.1f} images/s a GPU, MFU {_share(plan.mfu)} with all delays"
    yield from (f"  and {other}: {_line(it)}" for other, it in budget.others.items())


def _line(plan: Training) -> str:
    return f"{plan.images_per_s:,.0f} images/s, {_days(plan.days)}, ${plan.usd:,.0f}"


def _counts(budget: Budget) -> Iterator[str]:
    yield from ("", "  GPUs  nodes  images/s  step ms      time         USD    MFU")
    for plan in budget.by_count:
        yield (
            f"{plan.workers:>6}{plan.nodes:>7}{plan.images_per_s:>10,.0f}{plan.step_s * 1e3:>9.0f}"
            f"{_days(plan.days):>10}{plan.usd:>12,.0f}{_share(plan.mfu):>7}"
        )


def _stages(budget: Budget, prices: Prices) -> Iterator[str]:
    yield from ("", "  ZeRO  activations  peak GiB a GPU")
    for row in budget.by_zero_stage:
        kind = "recomputed" if row.recompute else "stored"
        yield f"{row.zero_stage:>6}  {kind:<12}{row.memory.peak / GIB:>10.2f}{_fits(row.memory, budget, prices)}"


def _data(budget: Budget, prices: Prices) -> Iterator[str]:
    read = budget.reading
    yield from ("", f"object store while training: {read.gbit_per_s:.2f} Gbit/s, {read.gets_per_s:,.0f} GET/s")
    if read.gets_per_s > PREFIX_GETS:
        prefixes = math.ceil(read.gets_per_s / PREFIX_GETS)
        yield f"  above {PREFIX_GETS:,} GET/s: spread the shards over {prefixes} or more prefixes"
    each = f"{read.bytes_per_sample / 1e3:,.0f} kB and {read.gets_per_sample:.2f} GETs a sample"
    yield f"  {each}, ${read.usd:,.0f} for requests in all"
    found = budget.features
    if found is None:
        return
    yield from ("", f"stored features of {found.samples:,.0f} images: {found.stored_gb:,.0f} GB")
    months = prices.assumptions.cache_months
    yield f"  encoding once: {found.encode_gpu_hours:,.0f} GPU hours, ${found.encode_usd:,.0f}"
    yield f"  keeping them {months:g} months: ${found.store_usd:,.0f}; reading: ${found.read_usd:,.2f} a pass"
    if found.passes is None:
        yield "  encoding in each pass stays cheaper"
    else:
        yield f"  cheaper than encoding in each pass from {found.passes:.2f} passes on"


def _nodes(budget: Budget, prices: Prices) -> Iterator[str]:
    nodes, gpu = budget.nodes, budget.request.gpu
    yield from ("", f"nodes: {nodes.trainer_nodes} of {prices.gpu(gpu).instance} to train")
    yield f"  {nodes.cpus_per_gpu:.2f} CPUs a GPU read and decode"
    if nodes.decode_nodes:
        yield f"  {nodes.decode_nodes} of {prices.cpu.instance} to decode, besides the trainers' own CPUs"
    else:
        yield "  the trainers' own CPUs are enough"
    if nodes.encoder_gpus:
        yield f"  {nodes.encoder_gpus} GPUs to encode while training (data.features: stream)"


def _serving(budget: Budget, prices: Prices) -> Iterator[str]:
    serving, request = budget.serving, budget.request
    if serving is None:
        return
    yield from ("", f"serving {request.load:g} images/s, 95 % of them within {request.slo_s:g} s")
    yield from (f"  {name:<32}{seconds:>9.3f} s" for name, seconds in serving.seconds.items())
    size = serving.weight_bytes / GIB
    offered = prices.gpu(request.gpu).gpu_gib
    fits = "" if size <= offered * prices.assumptions.headroom else ", too much"
    yield f"  all weights in bf16: {size:.1f} GiB of {offered:g}{fits}"
    if serving.replicas is None:
        yield f"  one image alone takes {serving.image_s:.3g} s: no number of replicas is enough"
        return
    yield f"  {serving.replicas} replicas, busy {_share(serving.busy)} of the time"
    yield f"  ${serving.usd_per_hour:,.2f} an hour, ${serving.usd_per_1000_images:,.2f} for 1,000 images"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _days(days: float) -> str:
    return f"{days:.2f} days" if days >= 1 else f"{days * 24:.2f} h"


def _time_of(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
