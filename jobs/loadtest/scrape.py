"""The server's own figures, from `/metrics` before and after a load: time per stage, width of batches, the cache."""

import re
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from blip3o.errors import ServiceError
from serve.metrics import METRICS

Samples = Mapping[tuple[str, str], float]  # by (name, all labels)

_LINE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_ENDING = re.compile(r"_(sum|count)$")
_TIMEOUT_S = 30


def scrape(url: str) -> Samples:
    """All series but the buckets of histograms. Raises `ServiceError` if there are none."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=_TIMEOUT_S) as response:
            return parse(response.read().decode())
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ServiceError(f"{url}/metrics cannot be read ({reason}): is {url} a running `blip3o serve`?") from error


def parse(text: str) -> Samples:
    """Prometheus' text format."""
    lines = "\n".join(line for line in text.split("\n") if line[:1] != "#")
    found = _LINE.findall(lines)
    return {(name, labels): float(value) for name, labels, value in found if not name.endswith("_bucket")}


def stages(before: Samples, after: Samples) -> dict[str, Any]:
    """What the server did in between. It is not `complete` if a replica ended, whose counters ended with it."""
    gained: defaultdict[tuple[str, str], float] = defaultdict(float)
    for (name, labels), value in after.items():
        gained[name, _own(name, labels)] += value - before.get((name, labels), 0.0)
    passes: dict[str, Any] = {}
    for (name, stage), count in sorted(gained.items()):
        if name == "blip3o_stage_seconds_count" and count:
            seconds = gained["blip3o_stage_seconds_sum", stage]
            passes[stage] = {"passes": int(count), "seconds": round(seconds, 4), "mean_s": round(seconds / count, 6)}
    kinds = sorted(label for name, label in gained if name == "blip3o_cache_hits_total")
    return {
        "passes": passes,
        "rows_mean": _mean(gained, "blip3o_batch_rows", ""),
        "queue_mean_s": _mean(gained, "blip3o_queue_seconds", "generate"),
        "cache": {
            kind: {what: int(gained[f"blip3o_cache_{what}_total", kind]) for what in ("hits", "misses")}
            for kind in kinds
        },
        "complete": all(series in after for series in before if _ENDING.search(series[0])),
    }


def _own(name: str, labels: str) -> str:
    """The value of a metric's own label; the others say who counted it."""
    spec = METRICS.get(_ENDING.sub("", name))
    found = re.search(rf'(?:^|,){spec.label}="([^"]*)"', labels) if spec and spec.label else None
    return found[1] if found else ""


def _mean(gained: Mapping[tuple[str, str], float], name: str, label: str) -> float | None:
    count = gained[f"{name}_count", label]
    return round(gained[f"{name}_sum", label] / count, 4) if count else None
