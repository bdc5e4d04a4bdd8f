"""The parts of verb `draw` that serve: the engine in this process, and Ray Serve with HTTP in front of it.

Both generate features at full cost and turn them into small pictures by a cheap decoder, so that what is measured is
batching: an SDXL decode of 50 steps would take longer than everything else together.
"""

import http.client
import json
import statistics
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from benchmarks.gpu import predictions
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.models import CHEAP_DECODER, build, model_config, pipeline, tokenizer
from benchmarks.gpu.ray_session import joined
from blip3o.bundle.layout import BundleConfig
from blip3o.bundle.reading import load_bundle
from blip3o.bundle.writing import write_bundle
from blip3o.config.recipe import TemplateConfig
from blip3o.config.recipe_files import Tree
from blip3o.device import release_memory
from blip3o.rng import numpy_generator
from cluster.ports import free_ports
from serve.engine.engine import Engine
from serve.protocol import GenerateRequest

SERVED = ("backbone", "queries", "dit", "coarse", "decoder")
BATCH = 16
LOAD = 0.7  # of the measured capacity, at which arrivals are random
CLIENTS = (1, 8, 32)
# The condition is computed once an image: four layers keep the bundle small enough to be written and read in seconds.
SMALL_BACKBONE: Tree = {"backbone": {"layers": 4, "vocab_size": 8192, "vision": {"layers": 1, "full_layers": [0]}}}


@dataclass
class Outcome:
    """Seconds of each request from when it was due, how many failed and why, and the seconds of all together."""

    latencies: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Requests that were answered, per second."""
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        """A quantile of the latencies; infinite if nothing was answered."""
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("inf")


def engine(bench: Bench) -> None:
    """One image a request: all at once for the capacity, then Poisson arrivals; in a batch of 16 and one at a time."""
    config = model_config(bench, "8b", {"decoder": CHEAP_DECODER})
    model = build(config, SERVED, bench.device, torch.bfloat16)
    rates = {}
    for size in (BATCH, 1):
        pipe = pipeline(model, bench.device, batch_size=size, max_length=bench.pick(224, 96))
        served = Engine(pipe, max_waiting=1024)
        served.start()
        try:
            _offer(bench, served, [0.0] * 2)  # the first requests create the batch and load kernels
            requests = bench.pick(64 if size > 1 else 16, 8)
            full = _offer(bench, served, [0.0] * requests)
            rates[size] = full.rate
            bench.row(f"batch of {size}: images/s, all at once", full.rate, "images/s")
            gaps = numpy_generator("gpu", "arrivals").exponential(1 / (LOAD * full.rate), requests)
            random = _offer(bench, served, gaps.cumsum().tolist())
            for share in (0.5, 0.99):
                label = f"batch of {size}: p{100 * share:.0f} at {100 * LOAD:.0f} % of that"
                bench.row(label, 1000 * random.quantile(share), "ms")
        finally:
            served.close()
    ratio = rates[BATCH] / rates[1]
    bench.row("step-batched over one at a time", ratio, "x", at_least=predictions.GOAL_BATCHED)


def _offer(bench: Bench, served: Engine, due: Sequence[float]) -> Outcome:
    """Submits a request at each of these seconds from now, and waits for all replies."""
    outcome, lock = Outcome(), threading.Lock()
    steps = bench.pick(30, 4)
    began = time.monotonic()
    futures = []
    for number, moment in enumerate(due):
        time.sleep(max(began + moment - time.monotonic(), 0.0))
        request = GenerateRequest(prompt="a red circle", seeds=(number,), num_inference_steps=steps, guidance_scale=3.0)
        future = served.generate(request)

        def done(_: object, start: float = began + moment) -> None:
            with lock:
                outcome.latencies.append(time.monotonic() - start)

        future.add_done_callback(done)
        futures.append(future)
    for future in futures:
        future.result()
    outcome.seconds = time.monotonic() - began
    return outcome


def serve(bench: Bench) -> None:
    """One replica of Ray Serve behind HTTP, at 1, 8 and 32 clients that each wait for their reply."""
    from jobs.serve import start

    gpu = bench.options.device == "gpu"
    with tempfile.TemporaryDirectory() as folder, joined(bench):
        _write_bundle(bench, f"{folder}/bundle")
        local = _alone(bench, f"{folder}/bundle")
        release_memory(bench.device)
        options = {"batch_size": BATCH, "num_gpus": 1 if gpu else 0, "num_cpus": 2 if gpu else 0.2, "max_waiting": 16}
        began = time.monotonic()
        handle = start(f"{folder}/bundle", port=free_ports(1)[0], options=options)
        try:
            bench.row("start, until it answers", time.monotonic() - began, "s")
            _timed(bench, handle.url, 0)
            alone = statistics.median(_timed(bench, handle.url, number) for number in range(bench.pick(5, 2)))
            bench.row("one request alone", 1000 * alone, "ms")
            added = 1000 * (alone - local)
            bench.row("of which HTTP and Serve", added, "ms", at_most=1000 * predictions.GOAL_HTTP_S)
            for clients in CLIENTS:
                _load(bench, handle.url, clients)
        finally:
            handle.stop()


def _write_bundle(bench: Bench, uri: str) -> None:
    config = model_config(bench, "8b", {"decoder": CHEAP_DECODER} | bench.pick(SMALL_BACKBONE, {}))
    model = build(config, SERVED, torch.device("cpu"), torch.bfloat16)
    described = BundleConfig(model=config, template=TemplateConfig(), max_length=bench.pick(224, 96), parts=SERVED)
    write_bundle(uri, config=described, tensors=dict(model.named_parameters()), tokenizer=tokenizer(), provenance={})


def _alone(bench: Bench, bundle: str) -> float:
    """Median seconds of one request to an engine of this bundle in this process."""
    served = Engine(load_bundle(bundle, device=bench.device, batch_size=BATCH))
    served.start()
    try:
        _offer(bench, served, [0.0])
        return statistics.median(_offer(bench, served, [0.0]).seconds for _ in range(bench.pick(5, 2)))
    finally:
        served.close()


def _load(bench: Bench, url: str, clients: int) -> None:
    outcome, lock = Outcome(), threading.Lock()
    until = time.monotonic() + bench.pick(20.0, 1.0)

    def client(first: int) -> None:
        number = first
        while time.monotonic() < until:
            began = time.monotonic()
            status = _ask(bench, url, number)
            with lock:
                if status == "200":
                    outcome.latencies.append(time.monotonic() - began)
                else:
                    outcome.failures[status] += 1
            number += clients

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    outcome.seconds = time.monotonic() - began
    bench.row(f"{clients} clients: images/s", outcome.rate, "images/s")
    for share in (0.5, 0.99):
        bench.row(f"{clients} clients: p{100 * share:.0f}", 1000 * outcome.quantile(share), "ms")
    bench.row(f"{clients} clients: replies 429", outcome.failures.pop("429", 0), "")
    bench.note(f"{clients} clients: other failures", dict(outcome.failures))


def _timed(bench: Bench, url: str, number: int) -> float:
    """Seconds of a request that succeeds. Raises `RuntimeError` if it does not."""
    began = time.monotonic()
    if (status := _ask(bench, url, number)) != "200":
        raise RuntimeError(f"a request alone ended with {status}")
    return time.monotonic() - began


def _ask(bench: Bench, url: str, seed: int) -> str:
    """Asks for one image; returns the status, or the name of the error if no reply came."""
    body = {"prompt": "a red circle", "seed": seed, "num_inference_steps": bench.pick(30, 4)}
    body |= {"response_format": "b64_json"}
    request = urllib.request.Request(
        f"{url}/v1/images/generations", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            reply.read()
            return str(reply.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except urllib.error.URLError as error:
        return type(error.reason).__name__
    except (OSError, http.client.HTTPException) as error:  # while the reply was read
        return type(error).__name__
