"""The comparison: starts everything, measures part by part, and keeps the result."""

import argparse
import itertools
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._measure import RESULTS, keep, kept
from benchmarks.serve_load import measures
from benchmarks.serve_load.bare import bare_engine, draw, rates
from benchmarks.serve_load.bundles import picture, write_untrained
from benchmarks.serve_load.ways import WAYS, running_replicas, serving, start_face, start_model, start_way
from blip3o import log, settings
from jobs.serve import build_config
from serve.config.options import ServeConfig

SUMMARY = "Step batching against other ways to serve, and what Ray Serve and the HTTP API add to the latency."
SCALED = "scaled"
PARTS = ("low_load", "cache", "engine", "throughput", "autoscaling")
MORE_PARTS = ("tuning",)  # replicas of every variant: for a machine with memory for them
NAME = "serve_load"
NOTHING = {"ratio": None, "ours": None, "other": None, "unit": "images/s", "n": 0}  # of the part that was left out
WIDTH, ROUNDS, REQUESTS, CLIENTS, EACH = 16, 5, 64, 32, 10
PATIENCE_S = 120.0
# What a replica may have instead, by the name of its model. The first is what the others are compared with.
VARIANTS: dict[str, dict[str, Any]] = {
    "steps": {},
    "width-1": {"batch_size": 1},
    "width-4": {"batch_size": 4},
    "decode-1": {"decode_batch_size": 1},
    "threads-2": {"threads": 2},
    "replicas-2": {"min_replicas": 2, "max_replicas": 2},
    "split": {"layout": "split", "coordinator_replicas": 1},
}
# For the replicas that come and go; the defaults of `ServeConfig` are 5 s and 300 s.
DELAYS = {"upscale_delay_s": 1, "downscale_delay_s": 5}


def config_of(bundle: str, name: str, width: int, **more: Any) -> ServeConfig:  # noqa: ANN401 - fields of the config
    """A model's config: one replica, and little of the CPUs that Ray counts, as all ways wait side by side."""
    options = {"bundle": bundle, "name": name, "batch_size": width, "num_cpus": 0.5, "ingress_replicas": 1}
    return build_config({**options, **more})


def start(bundle: str, models: Sequence[str], width: int) -> None:
    """Starts models, each an application of its own, and the HTTP API in front of them."""
    for name in models:
        if name in WAYS:
            start_way(name, WAYS[name], config_of(bundle, name, width))
        elif name == SCALED:
            start_model(name, config_of(bundle, name, width, max_replicas=2, **DELAYS))
        else:
            start_model(name, config_of(bundle, name, width, **VARIANTS[name]))
    start_face(config_of(bundle, "face", width), list(models))


def check_same_images(url: str, models: Sequence[str]) -> None:
    """Stops unless all models give the same image."""
    if len({picture(url, model=name, seed=7, steps=5) for name in models}) != 1:
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
    with bare_engine(bundle, chosen.width) as engine:
        found = measures.overhead(url, "steps", partial(draw, engine), rounds=chosen.rounds, each=chosen.each)
    return {"overhead": found, "first_partial": measures.first_partial(url, "steps", count=2 * chosen.each)}


def engine_rates(bundle: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """The throughput of the engine alone, without Serve and HTTP."""
    with bare_engine(bundle, chosen.width) as engine:
        found = rates(engine, requests=chosen.requests, rounds=chosen.rounds)
    return {**found, "ratio": round(found["steps"] / found["single"], 2)}


def autoscaling(url: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """One replica, a burst, two replicas, and back."""
    found = measures.reaction(
        url, SCALED, partial(running_replicas, SCALED), clients=chosen.clients, patience_s=PATIENCE_S
    )
    return {**found, **DELAYS}


def tuning(url: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Throughput of every variant, its p95, and its latency at low load."""
    found = measures.throughputs(
        url, list(VARIANTS), requests=chosen.requests, clients=chosen.clients, rounds=chosen.rounds
    )
    return {
        name: {
            "images_per_s": row["images_per_s"],
            "p95_s": row["latency_s"]["p95"],
            "alone_ms": measures.alone(url, name, count=chosen.each),
        }
        for name, row in found.items()
    }


# The models that each part needs: no other replica runs next to them.
MODELS: dict[str, tuple[str, ...]] = {
    "low_load": ("steps",),
    "cache": ("steps",),
    "engine": (),
    "throughput": tuple(WAYS),
    "autoscaling": (SCALED,),
    "tuning": tuple(VARIANTS),
}


def measured(url: str, part: str, chosen: argparse.Namespace, bundle: str) -> dict[str, Any]:
    """What a part finds; its models answer at the URL."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "low_load": lambda: low_load(url, chosen, bundle),
        "cache": lambda: {"cache": measures.cache(url, "steps", count=2 * chosen.each)},
        "engine": lambda: {"engine": engine_rates(bundle, chosen)},
        "throughput": lambda: throughput(url, chosen),
        "autoscaling": lambda: {"autoscaling": autoscaling(url, chosen)},
        "tuning": lambda: {"tuning": tuning(url, chosen)},
    }
    found = parts[part]()
    print(f"{part}: {found}", flush=True)
    return found


def measured_all(chosen: argparse.Namespace, bundle: str) -> dict[str, Any]:
    """What all parts find. Those with the same models share a server."""
    found: dict[str, Any] = {}
    for models, parts in itertools.groupby(chosen.parts, MODELS.__getitem__):
        with serving() if models else nullcontext("") as url:
            if models:
                start(bundle, models, chosen.width)
                check_same_images(url, models)
            for part in parts:
                found |= measured(url, part, chosen, bundle)
    return found


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
    with tempfile.TemporaryDirectory() as folder:
        bundle = chosen.bundle or write_untrained(f"{folder}/bundle", "tiny")
        found = measured_all(chosen, bundle)
    sizes = {"bundle": chosen.bundle or "tiny, untrained", "width": chosen.width, "clients": chosen.clients}
    before, is_same_commit = kept(NAME, chosen.results)
    keep(NAME, {**NOTHING, **(before if is_same_commit else {}), **found, **sizes}, chosen.results)
    return 0
