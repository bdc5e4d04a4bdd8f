"""Images a second from shards in a store to batches, ours against the ways that people use.

    python -m benchmarks.data.throughput [--sizes 256 448] [--cores 1 2] [--seconds 6] [--shards 24] [--per-shard 100]

Photographs of 640x480, scaled to a square and cropped; captions as token ids. A way runs in a process of its own that
is pinned to its cores; the store runs beside it. The figure is the median of five windows after the first batch, so
what comes before that (conversion, start of processes) is not in it: `benchmarks.data.first_batch` is about that.
"""

import argparse
import statistics
from typing import Any

from benchmarks.data._child import measure
from benchmarks.data._table import finish, parser
from benchmarks.data._ways import WAYS
from benchmarks.data._world import Job, world

SIDES = (640, 480)


def _measure_all(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    with world(shards=arguments.shards, per_shard=arguments.per_shard, sides=SIDES) as (root, folder):
        for size in arguments.sizes:
            for cores in arguments.cores:
                for number, way in enumerate(arguments.ways):
                    place = f"{folder}/{size}-{cores}-{number}"
                    job = Job(root=root, size=size, cores=cores, folder=place)
                    made = measure(way, job, seconds=arguments.seconds)
                    found.append({**made, "size": size, "cores": cores, "rate": statistics.median(made["rates"])})
                    print(f"{way} {size} px {cores} cores: {found[-1]['rate']:.0f} images/s", flush=True)
    return found


def _rows(found: list[dict[str, Any]], ways: list[str]) -> list[list[object]]:
    """A line for each way, a column for each size and number of cores; beside each rate its ratio to ours."""
    cases = sorted({(item["size"], item["cores"]) for item in found})
    rates = {(item["way"], item["size"], item["cores"]): item["rate"] for item in found}
    head: list[object] = ["images/s (ours / way)", *[f"{size} px, {cores} cores" for size, cores in cases]]
    lines: list[list[object]] = []
    for way in ways:
        cells = [f"{rates[way, *case]:.0f} ({rates['ours', *case] / rates[way, *case]:.2f})" for case in cases]
        lines.append([way, *cells])
    return [head, *lines]


def main(argv: list[str] | None = None) -> None:
    """Measures, compares and reports. Ends with an error if the ways do not make the same arrays."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--sizes", type=int, nargs="+", default=[256, 448])
    options.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    options.add_argument("--seconds", type=float, default=6.0)
    options.add_argument("--shards", type=int, default=24)
    options.add_argument("--per-shard", type=int, default=100)
    options.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    arguments = options.parse_args(argv)
    found = _measure_all(arguments)
    for size in arguments.sizes:
        shapes = {str(item["columns"]) for item in found if item["size"] == size}
        if len(shapes) > 1:
            raise SystemExit(f"the ways make different arrays, nothing to compare: {shapes}")
    last = [item for item in found if item["size"] == found[-1]["size"] and item["cores"] == found[-1]["cores"]]
    ours = next(item["rate"] for item in last if item["way"] == "ours")
    fastest = max((item for item in last if item["way"] != "ours"), key=lambda item: item["rate"], default=last[0])
    result = {
        "ratio": round(ours / fastest["rate"], 3),
        "ours": round(ours, 1),
        "other": round(fastest["rate"], 1),
        "fastest_other": fastest["way"],
        "unit": "images/s",
        "n": len(fastest["rates"]),
        "runs": found,
    }
    finish("throughput", result, _rows(found, arguments.ways), arguments)


if __name__ == "__main__":
    main()
