"""Seconds to the first batch of a run that resumes at 90 % of a pass, and whether the batch has the right samples.

    python -m benchmarks.data.resume [--shards 24] [--per-shard 100] [--size 256]

Ours starts there. The other is `webdataset`, which like upstream's trainer has to read everything before it and discard
it. The samples of our batch are compared with those of the run that was not interrupted.
"""

from benchmarks.data._child import measure
from benchmarks.data._table import behind, finish, parser
from benchmarks.data._world import BATCH, Job, world

SIDES = (640, 480)


def main(argv: list[str] | None = None) -> None:
    """Measures, compares and reports. Ends with an error if the resumed batch has other samples."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--shards", type=int, default=24)
    options.add_argument("--per-shard", type=int, default=100)
    options.add_argument("--size", type=int, default=256)
    arguments = options.parse_args(argv)
    start = arguments.shards * arguments.per_shard * 9 // 10 // BATCH
    with world(shards=arguments.shards, per_shard=arguments.per_shard, sides=SIDES) as (root, folder):
        jobs = [
            Job(root=root, size=arguments.size, cores=2, folder=f"{folder}/{number}", start=number)
            for number in (0, start)
        ]
        fresh, resumed = (measure("ours", job, seconds=0) for job in jobs)
        other = measure("webdataset", jobs[1], seconds=0)
        expected = jobs[1].builder()(start)["draw_key"].tolist()
    if resumed["keys"] != expected:
        raise SystemExit(f"batch {start} of the resumed run holds other samples than that of the uninterrupted one")
    result = {
        "ratio": round(other["first_s"] / resumed["first_s"], 3),
        "ours": resumed["first_s"],
        "other": other["first_s"],
        "unit": "s",
        "n": 1,
        "from_the_start": fresh["first_s"],
        "batch": start,
        "equal_samples": True,
    }
    rows: list[list[object]] = [
        ["seconds to the first batch", "from the start", f"at batch {start} (90 % of a pass)", "same samples"],
        ["ours", fresh["first_s"], resumed["first_s"], "yes"],
        ["`webdataset`, reading on", "", other["first_s"], "no such promise"],
    ]
    verdict = behind({f"resuming at batch {start}": other["first_s"] / resumed["first_s"]}, "reading on")
    finish("resume", result, rows, arguments, verdict=verdict)


if __name__ == "__main__":
    main()
