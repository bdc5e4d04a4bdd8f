"""Seconds from the start of a job to its first batch, by the number of shards: ours, and upstream's conversion first.

    python -m benchmarks.data.first_batch [--shards 10 100 1000] [--per-shard 10]

Ours starts Ray, reads the manifest and makes the batch from byte ranges of the shards; indexing ran before, once, and
is listed separately. The other fetches all shards, converts them to Arrow files with `datasets`, then makes a batch.
"""

from benchmarks.data._child import measure
from benchmarks.data._table import behind, finish, parser
from benchmarks.data._world import BUCKET, Job, empty_store, fill

SIDES = (96, 72)
SIZE, CORES = 64, 2


def main(argv: list[str] | None = None) -> None:
    """Measures, compares and reports."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--shards", type=int, nargs="+", default=[10, 100, 1000])
    options.add_argument("--per-shard", type=int, default=10)
    arguments = options.parse_args(argv)
    found = []
    with empty_store() as folder:
        for shards in arguments.shards:
            root = f"s3://{BUCKET}/{shards}"
            index_s = fill(root, shards=shards, per_shard=arguments.per_shard, sides=SIDES)
            job = Job(root=root, size=SIZE, cores=CORES, folder=f"{folder}/{shards}")
            seconds = [measure(way, job, seconds=0)["first_s"] for way in ("ours", "datasets")]
            found.append({"shards": shards, "ours": seconds[0], "other": seconds[1], "index_s": round(index_s, 2)})
            print(found[-1], flush=True)
    ours, other = found[-1]["ours"], found[-1]["other"]
    result = {"ratio": round(other / ours, 3), "ours": ours, "other": other, "unit": "s", "n": 1, "runs": found}
    head: list[object] = ["shards", "ours, s", "`datasets`, s", "indexing once, one core, s"]
    rows: list[list[object]] = [[item["shards"], item["ours"], item["other"], item["index_s"]] for item in found]
    verdict = behind({f"{it['shards']} shards": it["other"] / it["ours"] for it in found}, "the conversion")
    finish("first_batch", result, [head, *rows], arguments, verdict=verdict)


if __name__ == "__main__":
    main()
