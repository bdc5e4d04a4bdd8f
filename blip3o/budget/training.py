"""The time and money of a stage on a number of GPUs: a step's seconds, what interrupts it, days, USD.

Every quantity is a formula of the recipe, the prices file and the model's sizes; docs/budget.md lists them.
"""

import math
from dataclasses import dataclass

from blip3o.budget.prices import Assumptions, GpuOffer, Prices, peak_flops
from blip3o.budget.work import executed_flops, forward_flops
from blip3o.config.objectives import Task
from blip3o.config.recipe import Recipe
from blip3o.train.preflight.memory import ADAM, ELEMENT, EMA, Parameters

GIGA = 1e9
DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Seconds of training that a checkpoint takes, seconds between two, and what theory recommends.

    `share` is the part of the time that goes into checkpoints, `lost` the part that failures cost: half an interval of
    work and a restart each.
    """

    stall_s: float
    interval_s: float
    young_s: float
    daly_s: float
    share: float
    lost: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """A stage on `workers` GPUs. Seconds are those of one optimizer step, unless a name says otherwise.

    `waiting_s` is the time for which a step waits for data; `communication_s` what collectives take beyond the
    backward pass that hides them. `mfu` is useful FLOPs over the peak, all delays included.
    """

    workers: int
    nodes: int
    compute_s: float
    communication_s: float
    optimizer_s: float
    waiting_s: float
    step_s: float
    images_per_s: float
    checkpoints: Checkpoints
    mfu: float
    days: float
    usd: float


def plan_training(
    recipe: Recipe, parameters: Parameters, flops: dict[str, float], *, gpu: str, prices: Prices
) -> Training:
    """The plan of a stage on `parallel.workers` GPUs of a kind, with useful `flops` of a sample by part."""
    offer, rates = prices.gpu(gpu), prices.assumptions
    workers, peak = recipe.parallel.max_workers, peak_flops(gpu)
    nodes = math.ceil(workers / offer.gpus)
    samples = recipe.optim.global_batch_size
    executed = executed_flops(recipe, flops)
    compute = samples / workers * executed / (peak * rates.mfu)
    backward = compute * (1 - forward_flops(flops) / executed)
    sent = collective_seconds(recipe, parameters, offer, rates)
    hidden = min(sent.reduced_s, backward) if recipe.parallel.overlaps else 0.0
    communication = sent.reduced_s + sent.gathered_s - hidden
    # Weights, gradients and Adam's state, read and written once.
    optimizer = 2 * (ADAM + ELEMENT["fp32"]) * parameters.trained / _share(recipe) / (offer.memory_tb_s * 1e12)
    busy = compute + communication + optimizer
    waiting = max(0.0, samples / feed_rate(recipe, rates) - busy)
    step = busy + waiting
    kept = checkpoint_plan(recipe, parameters, rates, step_s=step, nodes=nodes)
    seconds = recipe.optim.steps * step * (1 + kept.share) / (1 - kept.lost)
    return Training(
        workers=workers,
        nodes=nodes,
        compute_s=compute,
        communication_s=communication,
        optimizer_s=optimizer,
        waiting_s=waiting,
        step_s=step,
        images_per_s=samples / step,
        checkpoints=kept,
        mfu=recipe.optim.steps * samples * sum(flops.values()) / (seconds * workers * peak),
        days=seconds / DAY_S,
        usd=seconds / 3600 * workers * offer.usd_per_hour / offer.gpus,
    )


def implied_mfu(recipe: Recipe, flops: dict[str, float], *, gpu: str, days: float) -> float:
    """The share of the peak that a stage's useful FLOPs were, if it took `days` days on `parallel.workers` GPUs."""
    useful = recipe.optim.steps * recipe.optim.global_batch_size * sum(flops.values())
    return useful / (days * DAY_S * recipe.parallel.max_workers * peak_flops(gpu))


def feed_rate(recipe: Recipe, rates: Assumptions) -> float:
    """Samples a second that the recipe's decoding actors make, or the threads of its workers (`data.reader` local)."""
    parallel = recipe.parallel
    actors = parallel.data_actors * parallel.cpus_per_data_actor
    cpus = actors if recipe.data.reader == "ray" else parallel.max_workers * parallel.data_threads
    return cpus * 1000 / decode_ms(recipe, rates)


def decode_ms(recipe: Recipe, rates: Assumptions) -> float:
    """One CPU's milliseconds for a sample: nothing is decoded where stored features are all that it needs of an image.

    Actors that encode for the trainers (`data.features` stream) are fed by those that decode.
    """
    stored = recipe.data.features == "cache" and recipe.objective.task is Task.GENERATE
    return rates.text_ms if stored else rates.decode_ms


@dataclass(frozen=True, kw_only=True)
class Collectives:
    """Seconds of a step in which gradients are reduced, and in which weights are gathered."""

    reduced_s: float
    gathered_s: float


def collective_seconds(recipe: Recipe, parameters: Parameters, offer: GpuOffer, rates: Assumptions) -> Collectives:
    """Seconds of the collectives of a step, by rings (Patarasuk and Yuan 2009): an all-reduce sends 2 (W - 1) / W times
    the bytes through the slowest link, a reduce-scatter or an all-gather half of that.
    """
    parallel = recipe.parallel
    workers = parallel.max_workers
    if workers == 1:
        return Collectives(reduced_s=0.0, gathered_s=0.0)
    # A node's GPUs share its network; rings within a node use its links.
    slowest = offer.network_gbit_s / 8 if workers > offer.gpus else offer.link_gb_s
    per_byte = (workers - 1) / workers / (slowest * rates.link_share * GIGA)
    gradients = ELEMENT[parallel.reduction_dtype] * parameters.trained
    weights = ELEMENT[parallel.precision] * parameters.trained
    passes = recipe.accumulation if parallel.zero_stage >= 2 else 1
    if parallel.zero_stage == 3:
        times = 3 if parallel.activation_checkpointing else 2
        everything = ELEMENT[parallel.precision] * (parameters.trained + parameters.frozen)
        return Collectives(reduced_s=passes * gradients * per_byte, gathered_s=passes * times * everything * per_byte)
    return Collectives(
        reduced_s=2 * passes * gradients * per_byte,
        gathered_s=weights * per_byte if parallel.zero_stage else 0.0,
    )


def checkpoint_plan(
    recipe: Recipe, parameters: Parameters, rates: Assumptions, *, step_s: float, nodes: int
) -> Checkpoints:
    """What checkpoints and failures take, and the interval by Young (1974) and by Daly (2006)."""
    average = EMA if recipe.optim.ema_decay else 0
    # The first worker's part is the largest: it has the weights, next to its part of the optimizer's state.
    whole = 1 if recipe.parallel.zero_stage < 3 else _share(recipe)  # at ZeRO 3 the weights are spread, too
    largest = parameters.trained * (ELEMENT[recipe.parallel.precision] / whole + (ADAM + average) / _share(recipe))
    stall = largest / (rates.checkpoint_gb_s * GIGA)
    between_s = rates.node_mtbf_h * 3600 / nodes
    interval = recipe.checkpoint.every * step_s
    lost = (interval / 2 + rates.restart_s) / between_s
    return Checkpoints(
        stall_s=stall,
        interval_s=interval,
        young_s=young(stall, between_s),
        daly_s=daly(stall, between_s),
        share=stall / interval,
        lost=min(lost, 0.99),
    )


def young(stall_s: float, between_failures_s: float) -> float:
    """The best seconds between checkpoints to first order: √(2 δ M), of a checkpoint's δ and M between failures."""
    return math.sqrt(2 * stall_s * between_failures_s)


def daly(stall_s: float, between_failures_s: float) -> float:
    """The same to higher order (Daly 2006, equation 37); M where a checkpoint takes longer than 2 M."""
    if stall_s >= 2 * between_failures_s:
        return between_failures_s
    ratio = math.sqrt(stall_s / (2 * between_failures_s))
    return young(stall_s, between_failures_s) * (1 + ratio / 3 + ratio * ratio / 9) - stall_s


def _share(recipe: Recipe) -> int:
    """Over how many workers the optimizer's state is spread."""
    return recipe.parallel.max_workers if recipe.parallel.zero_stage else 1
