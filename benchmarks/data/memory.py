"""Memory of a decoding actor over a long run: whether it stays constant once its caches are full.

    python -m benchmarks.data.memory [--seconds 60] [--shards 32] [--per-shard 100] [--size 256]

Resident memory of the largest actor after each batch. The peak of the second quarter of the run is compared with that
of the last one: in the first quarter the cache of blocks fills (256 MiB).
"""

import time

import psutil

from benchmarks.data._table import finish, parser
from benchmarks.data._ways import ours
from benchmarks.data._world import Job, world

SIDES = (640, 480)
MIB = 2**20


def _actors() -> list[psutil.Process]:
    """The processes that run our function."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "ray::MapWorker" in " ".join(child.cmdline())]


def _resident(job: Job, seconds: float) -> list[int]:
    """MiB of the largest actor after each batch. The stream ends with this function, as it must before Ray does."""
    batches = ours(job)
    next(batches)
    actors, resident = _actors(), []
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        next(batches)
        resident.append(max(actor.memory_info().rss for actor in actors) // MIB)
    return resident


def main(argv: list[str] | None = None) -> None:
    """Measures and reports."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--shards", type=int, default=32)
    options.add_argument("--per-shard", type=int, default=100)
    options.add_argument("--size", type=int, default=256)
    arguments = options.parse_args(argv)
    with world(shards=arguments.shards, per_shard=arguments.per_shard, sides=SIDES) as (root, folder):
        resident = _resident(Job(root=root, size=arguments.size, cores=2, folder=folder), arguments.seconds)
        import ray

        ray.shutdown()
    quarters = [resident[i * len(resident) // 4 : (i + 1) * len(resident) // 4] for i in range(4)]
    peaks = [max(quarter) for quarter in quarters]
    result = {
        "ratio": round(peaks[1] / peaks[3], 3),
        "ours": peaks[3],
        "other": peaks[1],
        "unit": "MiB",
        "n": len(resident),
        "peaks": peaks,
    }
    head: list[object] = ["peak MiB of an actor", *[f"quarter {number} of the run" for number in (1, 2, 3, 4)]]
    grown = peaks[3] - peaks[1]
    verdict = f"From the second quarter to the last, the peak changed by {grown:+d} MiB ({grown / peaks[1]:+.1%})."
    finish("memory", result, [head, [f"{len(resident)} batches", *peaks]], arguments, verdict=verdict)


if __name__ == "__main__":
    main()
