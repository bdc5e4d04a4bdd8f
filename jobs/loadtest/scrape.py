"""The server's own figures, from `/metrics` before and after a load: time per stage, width of batches, the cache."""

import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from blip3o.errors import ServiceError
from serve.metrics import SCOPES

Samples = Mapping[tuple[str, str], float]  # by (name, value of its own label), summed over replicas

_LINE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_WHERE = {"le", *(label for labels in SCOPES.values() for label in labels)}  # who counted it, not what
_TIMEOUT_S = 30


def scrape(url: str) -> Samples:
    """All counters and gauges, and the sums and counts of histograms. Raises `ServiceError` if there are none."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=_TIMEOUT_S) as response:
            return parse(response.read().decode())
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ServiceError(f"{url}/metrics cannot be read ({reason}): is {url} a running `blip3o serve`?") from error


def parse(text: str) -> Samples:
    """Prometheus' text format; buckets of histograms are left out."""
    samples: dict[tuple[str, str], float] = {}
    for name, labels, value in _LINE.findall("\n".join(line for line in text.split("\n") if line[:1] != "#")):
        own = [text for label, text in _LABEL.findall(labels) if label not in _WHERE]
        if not name.endswith("_bucket"):
            key = name, ",".join(own)
            samples[key] = samples.get(key, 0.0) + float(value)
    return samples


def stages(before: Samples, after: Samples) -> dict[str, Any] | None:
    """What the server did in between; None if a counter fell, as it does when a replica is replaced."""
    gained = {key: value - before.get(key, 0.0) for key, value in after.items()}
    if any(gained[key] < 0 for key in gained if key[0].endswith(("_total", "_count"))):
        return None
    found: dict[str, Any] = {}
    for name, label in sorted(gained):
        passes = gained[name, label]
        if name == "blip3o_stage_seconds_count" and passes:
            seconds = gained["blip3o_stage_seconds_sum", label]
            found[label] = {"passes": int(passes), "seconds": round(seconds, 4), "mean_s": round(seconds / passes, 6)}
    steps = gained.get(("blip3o_batch_rows_count", ""), 0.0)
    kinds = {label for name, label in gained if name.startswith("blip3o_cache_")}
    cache = {
        kind: {what: int(gained.get((f"blip3o_cache_{what}_total", kind), 0.0)) for what in ("hits", "misses")}
        for kind in sorted(kinds)
    }
    rows = round(gained["blip3o_batch_rows_sum", ""] / steps, 2) if steps else None
    queued = gained.get(("blip3o_queue_seconds_count", "generate"), 0.0)
    waited = round(gained["blip3o_queue_seconds_sum", "generate"] / queued, 4) if queued else None
    return {"passes": found, "rows_mean": rows, "queue_mean_s": waited, "cache": cache}
