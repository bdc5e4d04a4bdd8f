"""Images per second from shards in a store to batches, ours against the common ways.

    python -m benchmarks.data.throughput [--sizes 256 448] [--cores 1 2] [--seconds 3] [--shards 24] [--per-shard 100]

Photographs of 640x480, scaled to a square and cropped; captions as token ids. A way runs in its own process, pinned to
its cores; the store runs outside it. The figure is the median of five windows after the first batch, so it excludes
conversion and the start of processes, which `benchmarks.data.first_batch` measures.
"""

import argparse
import statistics
from typing import Any

from benchmarks.data._child import WINDOWS, measure
from benchmarks.data._table import behind, finish, parser
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
                    print(f"{way}, {size} px, cores: {cores}: {found[-1]['rate']:.0f} images/s", flush=True)
    return found


def _rates(found: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Images a second by case and way."""
    rates: dict[str, dict[str, float]] = {}
    for item in found:
        rates.setdefault(f"{item['size']} px, cores: {item['cores']}", {})[item["way"]] = item["rate"]
    return rates


def _rows(rates: dict[str, dict[str, float]], ways: list[str]) -> list[list[object]]:
    """A line for each loader and a column for each case; each rate comes with the ratio of ours to it."""
    rows: list[list[object]] = [["images/s (ours / way)", *rates]]
    for way in ways:
        rows.append([way, *[f"{case[way]:.0f} ({case['ours'] / case[way]:.2f})" for case in rates.values()]])
    return rows


def _fastest_other(case: dict[str, float]) -> tuple[str, float]:
    """The fastest of the other ways, and its rate; ours where there is no other."""
    others = {way: rate for way, rate in case.items() if way != "ours"} or case
    return max(others.items(), key=lambda item: item[1])


def main(argv: list[str] | None = None) -> None:
    """Measures, compares and reports. Ends with an error if the ways do not make the same arrays."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--sizes", type=int, nargs="+", default=[256, 448])
    options.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--shards", type=int, default=24)
    options.add_argument("--per-shard", type=int, default=100)
    options.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    arguments = options.parse_args(argv)
    ways = arguments.ways = ["ours", *[way for way in arguments.ways if way != "ours"]]
    found = _measure_all(arguments)
    for size in arguments.sizes:
        shapes = {str(item["columns"]) for item in found if item["size"] == size}
        if len(shapes) > 1:
            raise SystemExit(f"the ways make different arrays, nothing to compare: {shapes}")
    rates = _rates(found)
    fastest = {case: _fastest_other(of) for case, of in rates.items()}
    ratios = {f"{case} ({fastest[case][0]})": of["ours"] / fastest[case][1] for case, of in rates.items()}
    last = list(rates)[-1]
    result = {
        "ratio": round(rates[last]["ours"] / fastest[last][1], 3),
        "ours": round(rates[last]["ours"], 1),
        "other": round(fastest[last][1], 1),
        "fastest_other": fastest[last][0],
        "unit": "images/s",
        "n": WINDOWS,
        "ratios": ratios,
        "runs": found,
    }
    verdict = behind(ratios, "the fastest other way")
    finish("throughput", result, _rows(rates, ways), arguments, verdict=verdict)


if __name__ == "__main__":
    main()
