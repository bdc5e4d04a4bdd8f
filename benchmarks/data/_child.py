"""One measurement in its own process, pinned to its cores: `python -m benchmarks.data._child WAY JOB SECONDS`.

Prints one JSON object, after `result: `: seconds from the call of the way to its first batch, samples per second in
each window after that, the shapes of a batch, and the keys of the first one's samples. A way that cannot start with a
given batch reads the earlier ones and discards them.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import psutil

from benchmarks.data._ways import WAYS, Job

WINDOWS = 5
RESULT = "result: "


def measure(way: str, job: Job, *, seconds: float) -> dict[str, Any]:
    """Runs a way in a child process. Raises `SystemExit` with the end of its output if it prints no result.

    Its exit code is ignored: Ray kills a process that is still prefetching when Ray is shut down.
    """
    command = [sys.executable, "-m", __spec__.name, way, json.dumps(asdict(job)), str(seconds)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if not lines:
        raise SystemExit(f"{way} failed: {done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix(RESULT))


def run(way: str, job: Job, seconds: float) -> dict[str, Any]:
    """The measurement itself."""
    process = psutil.Process()
    process.cpu_affinity((process.cpu_affinity() or [0])[: job.cores])
    begun = time.perf_counter()
    batches: Iterator[Any] = WAYS[way](job)
    for _ in range(0 if way == "ours" else job.start):
        next(batches)
    first = next(batches)
    first_s = time.perf_counter() - begun
    rates = [_rate(batches, seconds / WINDOWS) for _ in range(WINDOWS)] if seconds else []
    columns = {
        name: [str(array.dtype).removeprefix("torch."), *array.shape]
        for name, array in sorted(first.items())
        if name != "micro_batch"
    }
    return {
        "way": way,
        "first_s": round(first_s, 3),
        "rates": [round(rate, 1) for rate in rates],
        "columns": columns,
        "keys": first["draw_key"].tolist(),
    }


def _rate(batches: Iterator[Any], seconds: float) -> float:
    """Samples per second, measured over at least this many seconds."""
    begun, samples = time.perf_counter(), 0
    while (taken := time.perf_counter() - begun) < seconds or not samples:
        samples += len(next(batches)["input_ids"])
    return samples / taken


def main() -> None:
    """Entry point."""
    way, job, seconds = sys.argv[1:]
    print(RESULT + json.dumps(run(way, Job(**json.loads(job)), float(seconds))), flush=True)
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


if __name__ == "__main__":
    main()
