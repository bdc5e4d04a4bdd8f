"""What is measured on a running server: throughput of each way, latency at low load, the cache, autoscaling."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks._measure import all_in_turns
from blip3o.errors import ServiceError
from blip3o.rng import numpy_generator
from jobs.loadtest.client import Client, Outcome
from jobs.loadtest.drive import Phase, run
from jobs.loadtest.scrape import scrape, stages
from jobs.loadtest.summary import distribution
from jobs.loadtest.workload import Call, Work, Workload, scenes

GUIDANCE = 2.0
MIXED_STEPS = (10, 20, 30, 50)
_TIMEOUT_S = 300.0
_POLL_S = 0.1


def ask(url: str, calls: Iterable[Call], *, clients: int, name: str = "load") -> Phase:
    """Sends requests, `clients` at a time, and waits for all replies. Raises `ServiceError` if one fails."""

    async def send() -> Phase:
        async with Client(url, key=None, timeout_s=_TIMEOUT_S, connections=clients) as client:
            phase = Phase(name)
            await run(phase, client, calls, clients=clients, seconds=None)
            return phase

    phase = asyncio.run(send())
    errors = {outcome.error for outcome in phase.outcomes if outcome.error}
    if errors:
        raise ServiceError(f"{name}: {', '.join(sorted(errors))}")
    return phase


def mixed_calls(model: str, count: int, *, turn: int) -> list[Call]:
    """Images of 10, 20, 30 and 50 steps, as many of each, in random order; the same ones for every model."""
    prompts = scenes(100)
    order = numpy_generator("serve_load", turn).permutation(count)
    works = [Work(kind="image", steps=steps, guidance=GUIDANCE) for steps in MIXED_STEPS]
    return [
        Call(
            work=works[number % len(works)],
            body=works[number % len(works)].body(prompts[number % len(prompts)], turn * count + number, model),
        )
        for number in order.tolist()
    ]


def throughputs(url: str, models: Sequence[str], *, requests: int, clients: int, rounds: int) -> dict[str, Any]:
    """Images per second and latencies of each model under the same requests, in turns; the first round is not counted.

    For each: the rate of every round, and the distribution of the latencies of all rounds.
    """
    rates: dict[str, list[float]] = {model: [] for model in models}
    outcomes: dict[str, list[Outcome]] = {model: [] for model in models}
    for turn in range(rounds + 1):
        for model in models:
            phase = ask(url, mixed_calls(model, requests, turn=turn), clients=clients, name=f"{model}, round {turn}")
            if turn:
                rates[model].append(requests / phase.seconds)
                outcomes[model] += phase.outcomes
    return {
        model: {
            "images_per_s": round(statistics.median(rates[model]), 2),
            "rounds": [round(rate, 2) for rate in rates[model]],
            "latency_s": distribution([outcome.latency for outcome in outcomes[model]]),
        }
        for model in models
    }


def overhead(url: str, model: str, bare: Callable[[str, int], object], *, rounds: int, each: int) -> dict[str, Any]:
    """Latency of single images, one after the other, over HTTP and by a call of the engine, in turns; medians, ms.

    Each round also asks `/health`, which never leaves the HTTP API: what is below it is Serve's proxy and the client.
    """
    work = Work(kind="image", guidance=GUIDANCE)
    prompt = scenes(1)[0]
    seeds = itertools.count()
    found: dict[str, list[float]] = {"api": [], "engine": []}

    def over_http() -> None:
        calls = [Call(work=work, body=work.body(prompt, next(seeds), model)) for _ in range(each)]
        found["api"] += [outcome.latency for outcome in ask(url, calls, clients=1).outcomes]

    def by_engine() -> None:
        for _ in range(each):
            began = time.perf_counter()
            bare(prompt, next(seeds))
            found["engine"].append(time.perf_counter() - began)

    all_in_turns((over_http, by_engine), rounds=rounds)
    medians = {way: 1000 * statistics.median(seconds[each:]) for way, seconds in found.items()}
    return {
        "api_ms": round(medians["api"], 1),
        "engine_ms": round(medians["engine"], 1),
        "overhead_ms": round(medians["api"] - medians["engine"], 1),
        "n": rounds * each,
    }


def first_partial(url: str, model: str, *, count: int) -> dict[str, Any]:
    """Seconds to the first of three previews and to the image, one request at a time; medians."""
    workload = Workload(works=[Work(kind="image", partials=3, guidance=GUIDANCE)], prompts=scenes(1), model=model)
    outcomes = ask(url, workload.one_of_each(count + 1), clients=1).outcomes[1:]
    first = statistics.median(outcome.to_first for outcome in outcomes if outcome.to_first is not None)
    whole = statistics.median(outcome.latency for outcome in outcomes)
    return {"first_ms": round(1000 * first, 1), "whole_ms": round(1000 * whole, 1), "share": round(first / whole, 3)}


def cache(url: str, model: str, *, count: int) -> dict[str, Any]:
    """Latency of a prompt that the cache has, and of one that it has not, in turns; medians, ms, and its counters."""
    work = Work(kind="image", steps=MIXED_STEPS[0], guidance=GUIDANCE)
    known, *fresh = [f"{scene}, {scene}" for scene in scenes(count + 2)]
    calls = [
        Call(work=work, body=work.body(prompt, number, model))
        for number, prompt in enumerate([known, fresh[0], *(one for new in fresh[1:] for one in (known, new))])
    ]
    before = scrape(url)
    latencies = [outcome.latency for outcome in ask(url, calls, clients=1).outcomes][2:]
    counted = stages(before, scrape(url))["cache"]["condition"]
    hit, miss = statistics.median(latencies[::2]), statistics.median(latencies[1::2])
    return {
        "hit_ms": round(1000 * hit, 1),
        "miss_ms": round(1000 * miss, 1),
        "saved_ms": round(1000 * (miss - hit), 1),
        "steps": work.steps,
        "counted": counted,
    }


def reaction(
    url: str, model: str, running: Callable[[], int], *, clients: int, patience_s: float
) -> Mapping[str, float | int]:
    """Seconds from the start of a burst until two replicas run, and from its end until one does.

    Raises `ServiceError` after `patience_s`.
    """
    workload = Workload(
        works=[Work(kind="image", steps=MIXED_STEPS[-1], guidance=GUIDANCE)], prompts=scenes(100), model=model
    )

    async def wait_for(replicas: int) -> float:
        began = time.monotonic()
        while await asyncio.to_thread(running) != replicas:
            await asyncio.sleep(_POLL_S)
            if time.monotonic() - began > patience_s:
                raise ServiceError(f"there were not {replicas} replicas within {patience_s:g} s")
        return round(time.monotonic() - began, 1)

    async def burst() -> Mapping[str, float | int]:
        phase = Phase("burst")
        async with Client(url, key=None, timeout_s=_TIMEOUT_S, connections=clients) as client:
            load = asyncio.ensure_future(
                run(phase, client, workload.calls("burst"), clients=clients, seconds=patience_s)
            )
            try:
                up = await wait_for(2)
            finally:
                load.cancel()
                await asyncio.wait([load])
        failed = sum(bool(outcome.error) for outcome in phase.outcomes)
        return {"up_s": up, "down_s": await wait_for(1), "requests": len(phase.outcomes), "failed": failed}

    return asyncio.run(burst())
