"""The comparison: starts everything, measures part by part, and keeps the result."""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks._measure import RESULTS, keep
from benchmarks.serve_load import measures
from benchmarks.serve_load.bundles import picture, write_untrained
from benchmarks.serve_load.ways import WAYS, running_replicas, serving, start_face, start_model, start_way
from blip3o import log, settings
from jobs.serve import build_config
from serve.config.options import ServeConfig
from serve.engine.engine import Engine
from serve.protocol import GenerateRequest

SUMMARY = "Step batching against other ways to serve, and what Ray Serve and the HTTP API add to the latency."
SCALED, SPLIT = "scaled", "split"
PARTS = ("throughput", "low_load", "cache", "autoscaling")
MORE_PARTS = ("layouts",)  # a process for each stage: for a machine with memory for them
WIDTH, ROUNDS, REQUESTS, CLIENTS, EACH = 16, 5, 64, 32, 10
PATIENCE_S = 120.0
# For the replicas that come and go; the defaults of `ServeConfig` are 5 s and 300 s.
DELAYS = {"upscale_delay_s": 1, "downscale_delay_s": 5}


def config_of(bundle: str, name: str, width: int, **more: Any) -> ServeConfig:  # noqa: ANN401 - fields of the config
    """A way's config: one replica, and little of the CPUs that Ray counts, as all ways wait side by side."""
    options = {"bundle": bundle, "name": name, "batch_size": width, "num_cpus": 0.5, "ingress_replicas": 1}
    return build_config({**options, **more})


def start(bundle: str, chosen: argparse.Namespace) -> None:
    """Starts all ways, and the HTTP API in front of them."""
    configs = {name: config_of(bundle, name, chosen.width) for name in WAYS}
    if "autoscaling" in chosen.parts:
        configs[SCALED] = config_of(bundle, SCALED, chosen.width, max_replicas=2, **DELAYS)
    for name, config in configs.items():
        start_way(name, WAYS.get(name, WAYS["steps"]), config)
    if "layouts" in chosen.parts:
        configs[SPLIT] = config_of(bundle, SPLIT, chosen.width, layout="split", coordinator_replicas=1)
        start_model(SPLIT, configs[SPLIT])
    start_face(config_of(bundle, "face", chosen.width), list(configs))


def check_same_images(url: str) -> None:
    """Stops unless all ways give the same image."""
    if len({picture(url, model=name, seed=7, steps=5) for name in WAYS}) != 1:
        raise SystemExit("the ways give different images: nothing to compare")


def throughput(url: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """The ratios, and the figures that they come from."""
    found = measures.throughputs(
        url, list(WAYS), requests=chosen.requests, clients=chosen.clients, rounds=chosen.rounds
    )
    rate = {name: row["images_per_s"] for name, row in found.items()}
    p95 = {name: row["latency_s"]["p95"] for name, row in found.items()}
    return {
        "ratio": round(rate["steps"] / rate["single"], 2),
        "ratio_batch": round(rate["steps"] / rate["whole"], 2),
        "p95_s": {"ours": p95["steps"], "batch": p95["whole"], "single": p95["single"]},
        "ours": rate["steps"],
        "other": rate["single"],
        "batch": rate["whole"],
        "unit": "images/s",
        "n": chosen.rounds,
        "ways": found,
    }


def low_load(url: str, chosen: argparse.Namespace, bundle: str) -> dict[str, Any]:
    """One request at a time: over HTTP, by the engine alone, and to the first preview."""
    from blip3o.bundle.reading import load_bundle

    torch.set_num_threads(1)  # as the replica has
    engine = Engine(load_bundle(bundle, batch_size=chosen.width))
    engine.start()
    try:
        steps = engine.describe().num_inference_steps
        found = measures.overhead(url, "steps", partial(_draw, engine, steps), rounds=chosen.rounds, each=chosen.each)
    finally:
        engine.close()
    return {"overhead": found, "first_partial": measures.first_partial(url, "steps", count=2 * chosen.each)}


def _draw(engine: Engine, steps: int, prompt: str, seed: int) -> None:
    engine.generate(
        GenerateRequest(prompt=prompt, seeds=(seed,), num_inference_steps=steps, guidance_scale=measures.GUIDANCE)
    ).result()


def autoscaling(url: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """One replica, a burst, two replicas, and back."""
    found = measures.reaction(
        url, SCALED, partial(running_replicas, SCALED), clients=chosen.clients, patience_s=PATIENCE_S
    )
    return {**found, **DELAYS}


def layouts(url: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """One replica that does all of the work, against one of each stage."""
    found = measures.throughputs(
        url, ("steps", SPLIT), requests=chosen.requests, clients=chosen.clients, rounds=chosen.rounds
    )
    return {"all_in_one": found["steps"], "split": found[SPLIT]}


def measured(url: str, chosen: argparse.Namespace, bundle: str) -> dict[str, Any]:
    """The parts that were asked for."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "throughput": lambda: throughput(url, chosen),
        "low_load": lambda: low_load(url, chosen, bundle),
        "cache": lambda: {"cache": measures.cache(url, "steps", count=2 * chosen.each)},
        "autoscaling": lambda: {"autoscaling": autoscaling(url, chosen)},
        "layouts": lambda: {"layouts": layouts(url, chosen)},
    }
    result: dict[str, Any] = {"ratio": None, "ours": None, "other": None, "unit": "images/s", "n": chosen.rounds}
    for name in chosen.parts:
        found = parts[name]()
        print(f"{name}: {found}", flush=True)
        result |= found
    return result


def main(argv: list[str] | None = None) -> int:
    """Prints what is measured, and the result as a line of JSON, which it keeps in a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_load", description=SUMMARY)
    parser.add_argument("--bundle", help="URI; default: the tiny preset with random weights")
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, *MORE_PARTS), default=list(PARTS))
    for name, default, words in (
        ("width", WIDTH, "batch_size of all ways"),
        ("rounds", ROUNDS, "rounds that count"),
        ("requests", REQUESTS, "requests of a way in a round"),
        ("clients", CLIENTS, "requests at a time"),
        ("each", EACH, "requests of a round at low load"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{words}; default {default}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the result")
    chosen = parser.parse_args(argv)
    log.configure()
    settings.configure_ray()
    with tempfile.TemporaryDirectory() as folder, serving() as url:
        bundle = chosen.bundle or write_untrained(f"{folder}/bundle", "tiny")
        start(bundle, chosen)
        check_same_images(url)
        result = measured(url, chosen, bundle)
    keep("serve_load", {**result, "width": chosen.width, "clients": chosen.clients}, chosen.results)
    return 0
