"""Figures of a load test: latencies, shares within the objectives, throughput, errors by class."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.loadtest.client import Outcome

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, kw_only=True)
class Objectives:
    """What a request has to keep, seconds: the whole, and the first preview or token. None: nothing is asked."""

    latency_s: float | None = None
    first_s: float | None = None

    def met(self, outcome: Outcome) -> bool:
        """Whether a request was answered in time; the second holds for those that stream."""
        whole = self.latency_s is None or outcome.latency <= self.latency_s
        first = self.first_s is None or outcome.to_first is None or outcome.to_first <= self.first_s
        return not outcome.error and whole and first


def distribution(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, quantiles by nearest rank and maximum, seconds; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    found = {name: ordered[math.ceil(share * len(ordered)) - 1] for name, share in QUANTILES.items()}
    every = {"mean": sum(ordered) / len(ordered), **found, "max": ordered[-1]}
    return {name: round(value, 4) for name, value in every.items()}


def summary(outcomes: Sequence[Outcome], seconds: float, objectives: Objectives) -> dict[str, Any]:
    """The figures of some requests. Latencies are those of the answered ones; a failed one has missed the objective."""
    answered = [outcome for outcome in outcomes if not outcome.error]
    firsts = [outcome.to_first for outcome in answered if outcome.to_first is not None]
    in_time = sum(objectives.met(outcome) for outcome in outcomes)
    span = max(seconds, 1e-9)
    return {
        "requests": len(outcomes),
        "failed": len(outcomes) - len(answered),
        "errors": dict(Counter(outcome.error for outcome in outcomes if outcome.error).most_common()),
        "latency_s": distribution([outcome.latency for outcome in answered]),
        "first_s": distribution(firsts),
        "client_wait_s": distribution([outcome.sent - outcome.due for outcome in outcomes]),
        "slo": round(in_time / len(outcomes), 4) if outcomes else None,
        "requests_per_s": round(len(answered) / span, 3),
        "in_time_per_s": round(in_time / span, 3),
        "images_per_s": round(sum(outcome.images for outcome in answered) / span, 3),
        "tokens_per_s": round(sum(outcome.tokens for outcome in answered) / span, 3),
    }


def by_label(outcomes: Sequence[Outcome], seconds: float, objectives: Objectives) -> dict[str, dict[str, Any]]:
    """The same for each kind of request."""
    labels = sorted({outcome.label for outcome in outcomes})
    return {
        label: summary([outcome for outcome in outcomes if outcome.label == label], seconds, objectives)
        for label in labels
    }
