"""The server's metrics as values: counted in the process that knows them, rendered by whichever process is asked.

A metric has at most one label of its own. `/metrics` adds the labels of its scope: who counted it. So a counter belongs
to one process for all of its life, and never falls while that process lives. Names and labels are in `METRICS`; the
unit is the name's ending, as Prometheus wants.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["gauge", "counter", "histogram"]
Scope = Literal["replica", "application", "route", "ingress"]

# What `/metrics` adds to a metric's own label. A replica's name is never used again.
SCOPES: Mapping[Scope, tuple[str, ...]] = {
    "replica": ("model", "application", "replica"),
    "application": ("model", "application"),
    "route": ("ingress", "route"),
    "ingress": (),
}

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """What a metric is. `label` is the name of its label, "" if it has none; `bounds` are a histogram's.

    A counter is 0 from the start for the labels in `known`: of a series that begins at 1, Prometheus misses the first.
    """

    kind: Kind
    help: str
    label: str = ""
    known: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    scope: Scope = "replica"

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels in `/metrics`, without `le` of a histogram's buckets."""
        return (*SCOPES[self.scope], *([self.label] if self.label else []))


METRICS: Mapping[str, MetricSpec] = {
    "blip3o_requests_running": MetricSpec(kind="gauge", help="Requests with a row in the batch.", label="kind"),
    "blip3o_requests_waiting": MetricSpec(kind="gauge", help="Requests with no row in the batch yet.", label="kind"),
    "blip3o_rows": MetricSpec(
        kind="gauge",
        help="Images in the batch (running), waiting for a place in it, and at the decoder (decoding).",
        label="state",
    ),
    "blip3o_request_success_total": MetricSpec(
        kind="counter", help="Requests that were answered.", label="kind", known=("generate", "chat")
    ),
    "blip3o_e2e_latency_seconds": MetricSpec(
        kind="histogram", help="From a request's arrival at the engine to its reply.", label="kind", bounds=_SECONDS
    ),
    "blip3o_queue_seconds": MetricSpec(
        kind="histogram", help="From a request's arrival to its first row in the batch.", label="kind", bounds=_SECONDS
    ),
    "blip3o_stage_seconds": MetricSpec(kind="histogram", help="One pass of a stage.", label="stage", bounds=_SECONDS),
    "blip3o_denoise_step_seconds": MetricSpec(
        kind="histogram", help="One denoising step of the batch.", bounds=_SECONDS
    ),
    "blip3o_batch_rows": MetricSpec(kind="histogram", help="Rows that a denoising step advanced.", bounds=_ROWS),
    "blip3o_cache_hits_total": MetricSpec(
        kind="counter", help="Cache look-ups that found an entry.", label="kind", known=("condition",)
    ),
    "blip3o_cache_misses_total": MetricSpec(
        kind="counter", help="Cache look-ups that found none.", label="kind", known=("condition",)
    ),
    "blip3o_images_total": MetricSpec(kind="counter", help="Images that were finished.", known=("",)),
    "blip3o_tokens_total": MetricSpec(
        kind="counter", help="Tokens of prompts and of replies.", label="kind", known=("prompt", "reply")
    ),
    "blip3o_cancelled_total": MetricSpec(kind="counter", help="Requests that the client cancelled.", known=("",)),
    "blip3o_rejected_total": MetricSpec(kind="counter", help="Requests that the queue refused.", known=("",)),
    "blip3o_errors_total": MetricSpec(
        kind="counter",
        help="Requests that failed, by the error.",
        label="class",
        known=("EngineError", "DeadlineError", "UnavailableError"),
    ),
    "blip3o_ready": MetricSpec(
        kind="gauge", help="Whether replicas answer for all that the bundle does: 1 or 0.", scope="application"
    ),
    "blip3o_replicas": MetricSpec(
        kind="gauge",
        help="Replicas that answered this scrape (ready), and that did not in time (silent).",
        label="state",
        scope="application",
    ),
    "blip3o_http_requests_total": MetricSpec(
        kind="counter", help="HTTP requests that were answered.", label="status", scope="route"
    ),
    "blip3o_http_request_seconds": MetricSpec(
        kind="histogram",
        help="From an HTTP request's arrival to the end of its reply.",
        bounds=_SECONDS,
        scope="route",
    ),
    "blip3o_http_first_event_seconds": MetricSpec(
        kind="histogram",
        help="From an HTTP request's arrival to the first event of its stream.",
        bounds=_SECONDS,
        scope="route",
    ),
    "blip3o_ingress_replicas": MetricSpec(
        kind="gauge",
        help="Processes of the HTTP API that answered this scrape (ready), and that did not in time (silent).",
        label="state",
        scope="ingress",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Observations by bucket: `counts[i]` are those in (bounds[i - 1], bounds[i]], the last one those above all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """All observations."""
        return sum(self.counts)


Sample = float | Histogram


@dataclass(frozen=True, kw_only=True)
class EngineMetrics:
    """The values by (name, label's value); "" for a metric without a label. A metric never counted has no value."""

    samples: Mapping[tuple[str, str], Sample]

    def value(self, name: str, label: str = "") -> float:
        """A counter's or gauge's value, 0 if it was never counted."""
        value = self.samples.get((name, label), 0.0)
        assert not isinstance(value, Histogram), f"{name} is a histogram"
        return value

    def total(self, name: str) -> float:
        """The sum of a counter's or gauge's values over its labels."""
        return sum(self.value(*key) for key in self.samples if key[0] == name)

    def observations(self, name: str) -> int:
        """The number of a histogram's observations over its labels."""
        found = (value for key, value in self.samples.items() if key[0] == name)
        return sum(value.count for value in found if isinstance(value, Histogram))


@dataclass
class Recorder:
    """Counts what belongs to one scope. Its caller holds the lock that guards it."""

    scope: Scope = "replica"
    _numbers: dict[tuple[str, str], float] = field(default_factory=dict)
    _counts: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Starts the counters whose labels are known at 0."""
        for name, spec in METRICS.items():
            if spec.scope == self.scope:
                self._numbers.update({(name, label): 0.0 for label in spec.known})

    def add(self, name: str, label: str = "", *, by: float = 1) -> None:
        """Adds to a counter."""
        _check(name, "counter", label)
        self._numbers[name, label] = self._numbers.get((name, label), 0.0) + by

    def observe(self, name: str, value: float, label: str = "") -> None:
        """Adds an observation to a histogram."""
        bounds = _check(name, "histogram", label).bounds
        counts = self._counts.setdefault((name, label), [0] * (len(bounds) + 1))
        counts[bisect_left(bounds, value)] += 1
        self._numbers[name, label] = self._numbers.get((name, label), 0.0) + value

    def snapshot(self, gauges: Mapping[tuple[str, str], float]) -> EngineMetrics:
        """The values now, with these of the gauges."""
        samples: dict[tuple[str, str], Sample] = {**self._numbers, **gauges}
        for (name, label), counts in self._counts.items():
            samples[name, label] = Histogram(
                bounds=METRICS[name].bounds, counts=tuple(counts), sum=self._numbers[name, label]
            )
        return EngineMetrics(samples=samples)


def _check(name: str, kind: Kind, label: str) -> MetricSpec:
    spec = METRICS[name]
    assert spec.kind == kind, f"{name} is a {spec.kind}"
    assert bool(label) == bool(spec.label), f"{name}: label '{label}'"
    return spec
