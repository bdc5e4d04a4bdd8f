"""The driver's planning of 30 million samples, 3,000 shards, 1,024 workers: `python -m benchmarks.scale.planner`.

The real code: writing and reading a manifest and a selection, the order and its fingerprint, the first micro-batches of
a pass, and the numbers that the stream hands out. Each is timed, then run again under tracemalloc for the bytes that
its result keeps and the most that it needed. The same at a tenth of the samples, of the shards and of the workers says
what grows with what.
"""

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._measure import RESULTS, keep
from blip3o.config.shards import SelectConfig
from blip3o.data.order.sample_order import SampleOrder, SourceRows
from blip3o.data.order.selection import ShardChoice, read_selection, write_selection
from blip3o.data.shards.manifest import Manifest, ShardRow, read_manifest, write_manifest
from blip3o.data.stream import Packets

MIB = 2**20
MICRO_BATCH = 16
SELECT = SelectConfig(min_side=256)
BAD_SHARE, LEFT_OUT_SHARE = 0.001, 0.1  # damaged rows, and rows that the selection leaves out


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of a run."""

    samples: int = 30_000_000
    shards: int = 3_000
    workers: int = 1_024


def shard_rows(size: Size) -> list[ShardRow]:
    """Rows of a manifest, with damaged ones at random."""
    random = np.random.default_rng(0)
    each = size.samples // size.shards
    return [
        ShardRow(
            shard=number,
            uri=f"s3://bucket/set/train-{number:06d}.tar",
            size=each * 117_000,
            version=f"{random.integers(2**62):032x}",
            rows=each,
            bad_rows=tuple(np.flatnonzero(random.random(each) < BAD_SHARE).tolist()),
        )
        for number in range(size.shards)
    ]


def choices(manifest: Manifest) -> list[ShardChoice]:
    """What a selection leaves out, at random."""
    random = np.random.default_rng(1)
    none: frozenset[str] = frozenset()
    return [
        ShardChoice(
            left_out=np.setdiff1d(np.flatnonzero(random.random(it.rows) < LEFT_OUT_SHARE), it.bad_rows).astype(
                np.int32
            ),
            known=none,
            judged=none,
        )
        for it in manifest.shards
    ]


def order_of(manifest: Manifest) -> SampleOrder:
    """The order of a run over the selected rows."""
    rows = SourceRows.from_manifest("set", manifest, read_selection(manifest, SELECT))
    return SampleOrder([rows], weights=[1.0], seed=0, micro_batch=MICRO_BATCH, chunk=32, window=32)


def parts(size: Size, folder: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What the driver does, in its order, by name; each call does it once more."""
    rows = shard_rows(size)
    yield "write the manifest", lambda: write_manifest(folder, "set", rows)
    yield "read the manifest", lambda: read_manifest(folder)
    yield "fingerprint of the manifest", lambda: read_manifest(folder).fingerprint
    manifest = read_manifest(folder)
    chosen = choices(manifest)
    yield "store a selection", lambda: write_selection(manifest, SELECT, chosen)
    yield "read it", lambda: read_selection(manifest, SELECT)
    yield "order of the rows", lambda: order_of(manifest)
    order = order_of(manifest)
    yield "fingerprint of the order", order.fingerprint
    yield "plan a pass", lambda: order_of(manifest).first_pass(0)
    yield "samples of one step", lambda: [order.micro_batch_refs(number) for number in range(size.workers)]
    yield "numbers of a pass", lambda: _count(size)


def _count(size: Size) -> int:
    """Goes through all packets of a pass, as the stream's read task and its actors do, and keeps none."""
    packets = Packets(ranks=size.workers, size=4)
    numbers = range(size.samples // MICRO_BATCH)
    return sum(
        len(list(packets.of(numbers[begin : begin + packets.per_call]))) for begin in numbers[:: packets.per_call]
    )


def measure(size: Size) -> dict[str, dict[str, float]]:
    """Seconds, MiB that the result keeps, and MiB that were needed at most, of every part."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, call in parts(size, folder):
            began = time.perf_counter()
            call()
            seconds = time.perf_counter() - began
            tracemalloc.start()
            result = call()
            kept, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            del result
            found[name] = {"s": round(seconds, 3), "kept_mib": round(kept / MIB, 1), "peak_mib": round(most / MIB, 1)}
    return found


def main(argv: list[str] | None = None) -> None:
    """Measures the full size and a tenth in each direction, prints a table, and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in vars(Size()).items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default:,}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the result")
    options = vars(parser.parse_args(argv))
    folder = options.pop("results")
    size = Size(**options)
    found = {"full": measure(size)}
    for name, value in options.items():
        found[f"a tenth of the {name}"] = measure(replace(size, **{name: max(value // 10, 1)}))
    print(f"{'seconds, kept MiB, peak MiB':30}" + "".join(f"{name:>26}" for name in found))
    for part in found["full"]:
        cells = [found[name][part] for name in found]
        print(f"{part:30}" + "".join(f"{it['s']:>10.2f}{it['kept_mib']:>8.0f}{it['peak_mib']:>8.0f}" for it in cells))
    keep("planner", {"size": options, "parts": found}, folder)


if __name__ == "__main__":
    main()
