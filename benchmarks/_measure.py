"""Times two ways alternately, and reports the result as a line and a file."""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def in_turns(
    ours: Callable[[], object], other: Callable[[], object], *, rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of each call of two ways, as `all_in_turns` measures them."""
    first, second = all_in_turns((ours, other), rounds=rounds)
    return first, second


def all_in_turns(calls: Sequence[Callable[[], object]], *, rounds: int) -> list[list[float]]:
    """Seconds of each call, `rounds` of each, alternating so that a busy machine slows all of them equally.

    One call of each comes first and is not counted.
    """
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for call, seconds in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                seconds.append(time.perf_counter() - start)
    return taken


def options(summary: str, sizes: dict[str, int], argv: list[str] | None) -> tuple[argparse.Namespace, Path]:
    """Sizes from the command line, and the folder for the result; sets torch's threads, one by default."""
    parser = argparse.ArgumentParser(description=summary)
    for name, default in {**sizes, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the result")
    parsed = vars(parser.parse_args(argv))
    folder = parsed.pop("results")
    torch.set_num_threads(parsed.pop("threads"))
    return argparse.Namespace(**parsed), folder


def report(
    name: str,
    ours: list[float],
    other: list[float],
    folder: Path,
    **more: Any,  # noqa: ANN401 - JSON values
) -> None:
    """Prints the result, medians with their quartiles, and keeps it in a dated file.

    `ratio` is other / ours: above 1, ours is faster.
    """
    result = {
        "ratio": round(statistics.median(other) / statistics.median(ours), 3),
        "ours": round(statistics.median(ours), 4),
        "other": round(statistics.median(other), 4),
        "unit": "s",
        "n": len(ours),
        "ours_quartiles": _quartiles(ours),
        "other_quartiles": _quartiles(other),
        **more,
    }
    keep(name, result, folder)


def keep(name: str, result: dict[str, Any], folder: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Prints a result, with date, commit and machine, as one line of JSON and keeps it in a dated file; returns it.

    If `quiet`, it is only written: a result that is not complete yet.
    """
    record = {
        "name": name,
        **result,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
    }
    line = json.dumps(record)
    folder.mkdir(parents=True, exist_ok=True)
    _path(name, folder).write_text(line + "\n", encoding="utf-8")
    if not quiet:
        print(line)
    return record


def kept(name: str, folder: Path) -> tuple[dict[str, Any], bool]:
    """What `keep` has written today, empty if nothing; and whether that was of the same commit."""
    path = _path(name, folder)
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return record, record.get("commit") == _commit()


def _path(name: str, folder: Path) -> Path:
    return folder / f"{name}-{datetime.now(UTC).date().isoformat()}.json"


def _quartiles(seconds: list[float]) -> list[float]:
    first, _, third = statistics.quantiles(seconds, n=4)
    return [round(first, 4), round(third, 4)]


def _commit() -> str:
    """The commit of the checkout, `unknown` outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    return done.stdout.strip() or "unknown"
