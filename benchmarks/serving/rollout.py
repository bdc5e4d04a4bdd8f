"""New bundles on a server under load, good and bad: `python -m benchmarks.serving.rollout --bundle runs/demo/bundle`.

Four clients of the stock `openai` library ask for images without a pause, while `blip3o deploy`'s own code rolls out

- `worse`: the bundle with the denoiser's weights shuffled, which the suite `scenes` must refuse;
- `mute`: the bundle without its decoder, which must fail its smoke test;
- `same`: the bundle under another seal, which must pass both, serve as a canary, and get all of the traffic.

The table says for each: what became of it, the seconds, replies other than 200 and lost connections by kind, calls that
failed although the library tried twice again, and the bundles whose images the clients got, by their sha256.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._measure import RESULTS, keep
from benchmarks.serve_failures import NAME, Load, served
from blip3o import log, settings
from blip3o.bundle.reading import load_bundle, open_bundle
from blip3o.bundle.writing import write_bundle
from blip3o.errors import ServiceError
from jobs.deployment.checks import Gate
from jobs.deployment.rollout import Canary, Rollout, resolved
from jobs.serve import build_config

SUITE, REFUSED = "scenes", ("worse", "mute")
OPTIONS = {"min_replicas": 1, "max_replicas": 1, "num_cpus": 0.5, "ingress_replicas": 1}


def write_variants(bundle: str, folder: str) -> dict[str, str]:
    """The bundles to roll out, by name: their URIs."""
    sealed, model = open_bundle(bundle), load_bundle(bundle).model
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    without = tuple(part for part in sealed.config.parts if part != "decoder")
    variants = {
        "worse": (sealed.config, {name: _shuffled(name, tensor) for name, tensor in tensors.items()}),
        "mute": (
            sealed.config.model_copy(update={"parts": without}),
            {name: tensor for name, tensor in tensors.items() if not name.startswith("decoder.")},
        ),
        "same": (sealed.config, tensors),
    }
    for name, (config, kept) in variants.items():
        provenance = {"variant": name}
        write_bundle(f"{folder}/{name}", config=config, tensors=kept, tokenizer=sealed.tokenizer, provenance=provenance)
    return {name: f"{folder}/{name}" for name in variants}


def _shuffled(name: str, tensor: Tensor) -> Tensor:
    """A tensor of the denoiser with its numbers in another order; any other one as it is."""
    if not name.startswith("dit."):
        return tensor
    order = torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(0))
    return tensor.detach().flatten()[order].view_as(tensor)


def roll_out(server: Rollout, name: str, uri: str, limit: int, load: Load) -> dict[str, Any]:
    """Rolls a bundle out under load; returns the table's row."""
    config = build_config(resolved(server.cluster, {"name": NAME, "bundle": uri}))
    before, lost, began = Counter(load.faults), load.lost, time.monotonic()
    seen = Counter(load.bundles)
    outcome, lines = "serves", list[str]()
    with tempfile.TemporaryDirectory() as out:
        gate = Gate(suites=(SUITE,), limit=limit, tolerance=0.05, out=out)
        try:
            replace(server, config=config, gate=gate, canary=Canary(share=0.5, seconds=3), echo=_noting(lines)).run(
                host="127.0.0.1", port=1
            )
        except ServiceError as error:
            outcome = f"refused: {error}"
    return {
        "bundle": name,
        "outcome": outcome,
        "seconds": round(time.monotonic() - began, 1),
        "scores": [line for line in lines if line.startswith(SUITE)],
        "faults": dict(Counter(load.faults) - before),
        "lost": load.lost - lost,
        "images_of": {sha256[:12]: count for sha256, count in (Counter(load.bundles) - seen).items()},
    }


def _noting(lines: list[str]) -> Callable[[str], None]:
    def echo(line: str) -> None:
        lines.append(line)
        print(f"  {line}", flush=True)

    return echo


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each bundle, and the result as a line of JSON, which it keeps in a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", required=True, help="a trained bundle, such as the demo's")
    parser.add_argument("--limit", type=int, default=40, help="items of the suite")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(argv)
    log.configure()
    settings.configure_ray()
    with tempfile.TemporaryDirectory() as folder:
        variants = write_variants(chosen.bundle, folder)
        refused = {open_bundle(variants[name]).sha256 for name in REFUSED}
        with served(chosen.bundle, nodes=1, options=OPTIONS) as (server, _), Load(server.url) as load:
            rows = []
            for name, uri in variants.items():
                rows.append(roll_out(server, name, uri, chosen.limit, load))
                print({key: value for key, value in rows[-1].items() if key != "scores"}, flush=True)
    failed = sum(sum(row["faults"].values()) for row in rows)  # a lost call is three of them
    leaked = sum(count for sha256, count in load.bundles.items() if sha256 in refused)
    totals = {"ratio": None, "ours": failed, "unit": "failed requests", "n": load.answered}
    keep("serve_rollout", {**totals, "images_of_refused_bundles": leaked, "rows": rows}, chosen.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
